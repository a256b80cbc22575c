// The server's page, driven in Chromium: as a user with a mouse, as one with only a keyboard, and on a narrow screen.
//
//     node page.mjs http://127.0.0.1:8080 [SCREENSHOT.png]
//
// The server is `cargo run -p breakers-serve --example scripted`, or `breakers serve` with any chat model. Prints a line for each
// check and ends with an error at the first that fails. Needs `npm install playwright-core` in the current folder and Chromium,
// whose program the variable CHROMIUM may name. The screenshot is one of a short conversation.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Packages are those of the folder in which this is started.
const { resolve } = createRequire(pathToFileURL(process.cwd() + "/"));
const { default: playwright } = await import(pathToFileURL(resolve("playwright-core")));

const [base = "http://127.0.0.1:8080", screenshot] = process.argv.slice(2);
const origin = new URL(base).origin;
const browser = await playwright.chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium's own sandbox does not work for the superuser, as in containers.
  args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
});

// A page that remembers what went wrong in it, and whom it asked.
async function open(viewport) {
  const context = await browser.newContext({ viewport });
  const page = await context.newPage();
  const seen = { errors: [], requests: [] };
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.goto(origin + "/");
  await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
  return { page, seen };
}

const last = (page, role) => page.locator(`#log li[data-role=${role}]`).last().locator("span");
const idle = (page) => page.waitForFunction(() => document.querySelector("#stop").disabled, null, { timeout: 60000 });
const number = async (page, label) =>
  Number(await page.locator(`#numbers tr:has(th:text-is("${label}")) td`).textContent());
// Long enough to be seen while it grows. The scripted model repeats it slowly.
const long = "slowly " + Array.from({ length: 120 }, (_, i) => `word${i}`).join(" ");

const { page, seen } = await open({ width: 900, height: 700 });

console.log("send: the answer grows and ends");
await page.waitForSelector("#numbers td");
const before = await number(page, "Tokens generated");
await page.fill("#max", "60");
await page.fill("#message", "Say something short.");
await page.click("#send");
await last(page, "assistant").waitFor();
await idle(page);
assert.notEqual(await last(page, "assistant").textContent(), "");
assert.equal(await last(page, "user").textContent(), "Say something short.");
assert.equal(await page.inputValue("#message"), "");

console.log("stream and stop: pieces come one by one, and no more after Stop");
await page.fill("#max", "2000");
await page.fill("#message", long);
await page.click("#send");
const length = async () => (await last(page, "assistant").textContent()).length;
await page.waitForFunction(() => document.querySelectorAll("#log li[data-role=assistant]").length === 2);
const lengths = new Set();
for (let i = 0; i < 400 && lengths.size < 4; i++) {
  lengths.add(await length());
  await page.waitForTimeout(20);
}
assert.ok(lengths.size >= 4, `the text did not grow: ${[...lengths]}`);
await page.click("#stop");
await idle(page);
assert.equal(await last(page, "error").textContent(), "stopped");
const stopped = await length();
await page.waitForTimeout(500);
assert.equal(await length(), stopped);
await page.waitForFunction(
  async () => /^breakers_num_requests_running\{[^}]*\} 0$/m.test(await (await fetch("/metrics")).text()),
  null, { timeout: 20000 });

console.log("metrics: they move, and the line is drawn");
await page.waitForFunction(
  (before) => Number([...document.querySelectorAll("#numbers td")].at(3).textContent) > before, before, { timeout: 20000 });
await page.waitForFunction(() => document.querySelector("#line").getAttribute("points")?.includes(" "));

console.log("what a model writes is text and no markup");
const markup = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>";
await page.fill("#max", "60");
await page.fill("#message", markup);
await page.click("#send");
await idle(page);
assert.equal(await last(page, "user").textContent(), markup);
assert.equal(await page.locator("#log img, #log span b").count(), 0);
assert.equal(await page.title(), "Breakers");

console.log("reload: an answer that runs is ended, and the page begins anew");
await page.fill("#max", "2000");
await page.fill("#message", long);
await page.click("#send");
await page.waitForFunction(() => !document.querySelector("#stop").disabled);
await page.reload();
await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
assert.equal(await page.locator("#log li").count(), 0);
await page.fill("#max", "20");
await page.fill("#message", "Are you still there?");
await page.click("#send");
await last(page, "assistant").waitFor();
await idle(page);
if (screenshot) {
  // With figures and a line.
  await page.waitForTimeout(4000);
  await page.screenshot({ path: screenshot });
}

console.log("an error is shown and the conversation goes on");
await page.locator("details:has(#schema) summary").click();
await page.fill("#schema", "{");
await page.fill("#message", "With a schema that is none.");
await page.click("#send");
await last(page, "error").waitFor();
await page.fill("#schema", "");
await page.fill("#message", "And now?");
await page.click("#send");
await page.waitForFunction(() => document.querySelector("#log li:last-child").dataset.role === "assistant");
await idle(page);

console.log("keyboard alone: every control is reached, Return sends, Escape stops");
const keys = await open({ width: 900, height: 700 });
assert.equal(await keys.page.evaluate(() => document.activeElement.id), "message");
const reached = new Set();
for (let i = 0; i < 24; i++) {
  await keys.page.keyboard.press("Tab");
  const here = await keys.page.evaluate(() => {
    const { activeElement: one } = document;
    return [one.id || one.tagName, getComputedStyle(one).outlineStyle];
  });
  reached.add(here[0]);
  if (here[0] !== "BODY") assert.notEqual(here[1], "none", `no focus is seen on ${here[0]}`);
}
for (const id of ["model", "message", "send", "clear", "max", "temperature", "SUMMARY"]) assert.ok(reached.has(id), `${id}: ${[...reached]}`);
await keys.page.focus("#message");
await keys.page.keyboard.type(long);
await keys.page.keyboard.press("Enter");
await keys.page.waitForFunction(() => document.querySelector("#log li[data-role=assistant] span")?.textContent.length > 5);
await keys.page.keyboard.press("Escape");
await idle(keys.page);
assert.equal(await last(keys.page, "error").textContent(), "stopped");
assert.equal(await keys.page.evaluate(() => document.activeElement.id), "message");

console.log("320 pixels: nothing is cut off or overlaps");
const narrow = await open({ width: 320, height: 600 });
await narrow.page.locator("details:has(#schema) summary").click();
await narrow.page.fill("#message", "x".repeat(200));
await narrow.page.fill("#max", "20");
await narrow.page.click("#send");
await last(narrow.page, "assistant").waitFor();
await idle(narrow.page);
const width = await narrow.page.evaluate(() => document.scrollingElement.scrollWidth);
assert.ok(width <= 320, `the page is ${width} pixels wide`);
const outside = await narrow.page.evaluate(() =>
  [...document.querySelectorAll("button, input, select, textarea, li, svg, table")]
    .filter((one) => one.getClientRects().length && (one.getBoundingClientRect().right > 320 || one.getBoundingClientRect().left < 0))
    .map((one) => one.id || one.tagName));
assert.deepEqual(outside, []);

console.log("no request to anybody else, no error of the page's own");
for (const one of [seen, keys.seen, narrow.seen]) {
  const foreign = one.requests.filter((url) => new URL(url).origin !== origin);
  assert.deepEqual(foreign, []);
  // Browsers ask for an icon and report that there is none.
  assert.deepEqual(one.errors.filter((text) => !/404|favicon/.test(text)), []);
}
await browser.close();
console.log("all passed");
