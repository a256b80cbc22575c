// The server's page, driven in Chromium: as a user with a mouse, as one with only a keyboard, and on a narrow screen.
//
//     node page.mjs URL [FILE FILE] [--only models] [--screenshot FILE.png]
//
// The server is `cargo run -p breakers-serve --example scripted`, or `breakers serve` with any chat model. With two files in the
// folder of the server's registry, models are deployed and rolled back, too; for the example `registry`, whose models say only
// their names, do that alone (`--only models`). `cargo xtask serving` does all of it. Prints a line for each check and ends with an error at the first that fails. Needs
// `npm install playwright-core` in the current folder and Chromium, whose program the variable CHROMIUM may name.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

// Packages are those of the folder in which this is started.
const { resolve } = createRequire(pathToFileURL(process.cwd() + "/"));
const { default: playwright } = await import(pathToFileURL(resolve("playwright-core")));

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: "string" }, screenshot: { type: "string" } },
});
const [base = "http://127.0.0.1:8080", ...paths] = positionals;
assert.ok([0, 2].includes(paths.length), "two files of the registry, or none");
const origin = new URL(base).origin;
const browser = await playwright.chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium's own sandbox does not work for the superuser, as in containers.
  args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
});

console.log(`Chromium ${browser.version()}`);

// Pages that remember what went wrong in them, and whom they asked.
const opened = [];
async function open(viewport, options = {}) {
  const context = await browser.newContext({ viewport, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  const seen = { errors: [], requests: [] };
  opened.push({ page, seen });
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
  });
  await page.goto(origin + "/");
  await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
  return { page, seen };
}

const last = (page, role) => page.locator(`#log li[data-role=${role}]`).last().locator("span");
const idle = (page) => page.waitForFunction(() => document.querySelector("#stop").disabled, null, { timeout: 60000 });
const number = async (page, label) =>
  Number(await page.locator(`#numbers tr:has(th:text-is("${label}")) td`).textContent());
const told = (page, text) =>
  page.waitForFunction((text) => document.querySelector("#told").textContent.includes(text), text, { timeout: 60000 });
async function send(page, text, n = 60) {
  await page.fill("#max", String(n));
  await page.fill("#message", text);
  await page.click("#send");
}
// A slow answer without a server that is slow; the page sees the bytes of a real one.
const events = (pieces) => pieces.map((piece) => `data: ${JSON.stringify(piece)}\n\n`).join("") + "data: [DONE]\n\n";
const said = (content, finish_reason = null) => ({ choices: [{ index: 0, delta: { content }, finish_reason }] });
const spent = (n) => ({ choices: [], usage: { prompt_tokens: 1, completion_tokens: n, total_tokens: 1 + n } });
const stream = (route, pieces) => route.fulfill({ contentType: "text/event-stream", body: events(pieces) });
// Long enough to be seen while it grows. The scripted model repeats it slowly; others get a schema that takes them long.
const long = "slowly " + Array.from({ length: 120 }, (_, i) => `word${i}`).join(" ");
async function prolong(page, is_long) {
  const schema = { type: "array", items: { type: "integer", minimum: 0, maximum: 999 }, minItems: 300 };
  const text = is_long && await page.inputValue("#model") !== "scripted" ? JSON.stringify(schema) : "";
  await page.evaluate((text) => { document.querySelector("#schema").value = text; }, text);
}
async function sendLong(page) {
  await prolong(page, true);
  await send(page, long, 2000);
  // Read when it was sent.
  await prolong(page, false);
}
const hostile = "<img src=x onerror=\"window.broken=1\"></span></li><script>window.broken=1</script><b>bold</b>";

async function chat() {
  const { page } = await open({ width: 900, height: 700 });

  console.log("send: the answer grows and ends");
  await page.waitForSelector("#numbers td");
  const before = await number(page, "Tokens generated");
  await send(page, "Say something short.");
  await last(page, "assistant").waitFor();
  await idle(page);
  assert.notEqual(await last(page, "assistant").textContent(), "");
  assert.equal(await last(page, "user").textContent(), "Say something short.");
  assert.equal(await page.inputValue("#message"), "");

  console.log("stream and stop: pieces come one by one, and no more after Stop");
  await sendLong(page);
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
    async () => !/^breakers_num_requests_running\{[^}]*\} [1-9]/m.test(await (await fetch("/metrics")).text()),
    null, { timeout: 20000 });

  console.log("metrics: they move, and the line is drawn");
  await page.waitForFunction((before) => {
    const row = [...document.querySelectorAll("#numbers tr")].find((row) => row.textContent.startsWith("Tokens generated"));
    return Number(row.querySelector("td").textContent) > before;
  }, before, { timeout: 20000 });
  await page.waitForFunction(() => document.querySelector("#line").getAttribute("points")?.includes(" "));

  console.log("a new conversation while an answer runs: nothing of the old one is left");
  await sendLong(page);
  await page.waitForFunction(() => document.querySelector("#log li:last-child span").textContent.length > 5
    && document.querySelector("#log li:last-child").dataset.role === "assistant");
  await page.click("#clear");
  await idle(page);
  assert.equal(await page.locator("#log li").count(), 0);

  console.log("what users and models write is text and no markup");
  await send(page, hostile);
  await idle(page);
  assert.equal(await last(page, "user").textContent(), hostile);
  await page.route("**/v1/chat/completions", (route) => stream(route, [said(hostile), said("", "stop")]));
  await send(page, "Be hostile.");
  await idle(page);
  await page.unroute("**/v1/chat/completions");
  assert.equal(await last(page, "assistant").textContent(), hostile);
  assert.equal(await page.locator("#log img, #log script, #log span b").count(), 0);
  assert.equal(await page.evaluate(() => window.broken), undefined);

  console.log("an answer that is cut off, or breaks off, is said to be");
  await page.route("**/v1/chat/completions", (route) => stream(route, [said("a"), said("", "length"), spent(7)]));
  await send(page, "Write a lot.");
  await idle(page);
  assert.equal(await last(page, "note").textContent(), "cut off after 7 tokens");
  await page.unroute("**/v1/chat/completions");
  await page.route("**/v1/chat/completions", (route) => stream(route, [said("a")]));
  await send(page, "Write a lot.");
  await idle(page);
  assert.equal(await last(page, "error").textContent(), "the answer broke off");
  await page.unroute("**/v1/chat/completions");

  console.log("reload: an answer that runs is ended, and the page begins anew");
  await sendLong(page);
  await page.waitForFunction(() => !document.querySelector("#stop").disabled);
  await page.reload();
  await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
  assert.equal(await page.locator("#log li").count(), 0);
  await send(page, "Are you still there?", 20);
  await last(page, "assistant").waitFor();
  await idle(page);

  console.log("an error is shown, and its question is no part of the conversation");
  await page.locator("details:has(#schema) summary").click();
  await page.fill("#schema", "{");
  await send(page, "With a schema that is none.");
  await last(page, "error").waitFor();
  await idle(page);
  assert.equal(await page.inputValue("#message"), "With a schema that is none.");
  await page.fill("#schema", "");
  const request = page.waitForRequest("**/v1/chat/completions");
  await send(page, "And now?");
  const roles = (await request).postDataJSON().messages.map((message) => message.role);
  assert.deepEqual(roles, ["user", "assistant", "user"]);
  await page.waitForFunction(() => document.querySelector("#log li:last-child").dataset.role !== "user");
  await idle(page);

  console.log("a server that is gone is said to be, and one that is back, too");
  const gone = (route) => route.abort("connectionrefused");
  await page.route("**/metrics", gone);
  await page.locator("#silent").waitFor();
  await page.unroute("**/metrics", gone);
  await page.locator("#silent").waitFor({ state: "hidden" });
  return page;
}

async function keyboard() {
  console.log("keyboard alone: every control is reached, Return sends, Escape stops");
  const { page } = await open({ width: 900, height: 700 });
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
  const reached = new Set();
  for (let i = 0; i < 24; i++) {
    await page.keyboard.press("Tab");
    const here = await page.evaluate(() => {
      const { activeElement: one } = document;
      return [one.id || one.tagName, getComputedStyle(one).outlineStyle];
    });
    reached.add(here[0]);
    if (here[0] !== "BODY") assert.notEqual(here[1], "none", `no focus is seen on ${here[0]}`);
  }
  for (const id of ["model", "message", "send", "clear", "max", "temperature", "SUMMARY"]) {
    assert.ok(reached.has(id), `${id}: ${[...reached]}`);
  }
  await prolong(page, true);
  await page.fill("#max", "2000");
  await page.focus("#message");
  await page.keyboard.type(long);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#log li[data-role=assistant] span")?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await idle(page);
  assert.equal(await last(page, "error").textContent(), "stopped");
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
  return page;
}

// The width of what can be scrolled, and what reaches out of the screen.
async function fits(page, pixels) {
  const width = await page.evaluate(() => document.scrollingElement.scrollWidth);
  assert.ok(width <= pixels, `the page is ${width} pixels wide`);
  const outside = await page.evaluate((pixels) =>
    [...document.querySelectorAll("button, input, select, textarea, li, svg, table, fieldset, p")]
      .filter((one) => one.getClientRects().length
        && (one.getBoundingClientRect().right > pixels || one.getBoundingClientRect().left < 0))
      .map((one) => one.id || one.tagName), pixels);
  assert.deepEqual(outside, []);
}

async function narrow() {
  console.log("320 pixels: nothing is cut off or has to be scrolled to the side");
  const { page } = await open({ width: 320, height: 600 });
  await page.locator("details:has(#schema) summary").click();
  await send(page, "x".repeat(200), 20);
  await last(page, "assistant").waitFor();
  await idle(page);
  await fits(page, 320);
  return page;
}

async function colors() {
  console.log("light and dark: every text can be read");
  for (const colorScheme of ["light", "dark"]) {
    const { page } = await open({ width: 900, height: 700 }, { colorScheme });
    await page.route("**/v1/chat/completions", (route) => stream(route, [said("an answer"), { error: { message: "an error" } }]));
    await send(page, "a question");
    await last(page, "error").waitFor();
    const found = await page.evaluate(() => {
      const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      // What is seen where these colors lie on each other.
      const mix = (...colors) => {
        for (const color of colors) {
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 1, 1);
        }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const probe = document.createElement("p");
      document.body.append(probe);
      probe.style.setProperty("color", "Canvas");
      const ground = getComputedStyle(probe).color;
      probe.remove();
      const light = (rgb) => rgb.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
      const texts = [...document.querySelectorAll("h1, label, summary, button:enabled, th, td, #log b, #log span, textarea, select")];
      return { ground: mix(ground), contrasts: texts.filter((one) => one.getClientRects().length).map((one) => {
        const above = [];
        let opacity = 1;
        for (let up = one; up; up = up.parentElement) {
          above.unshift(getComputedStyle(up).backgroundColor);
          opacity *= Number(getComputedStyle(up).opacity);
        }
        const back = mix(ground, ...above);
        canvas.globalAlpha = opacity;
        const front = mix(getComputedStyle(one).color);
        canvas.globalAlpha = 1;
        const [a, b] = [light(front), light(back)];
        return [one.id || one.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
      }) };
    });
    assert.equal(found.ground[0] > 128, colorScheme === "light", `the page does not follow: ${found.ground}`);
    assert.ok(found.contrasts.length > 15, found.contrasts);
    const faint = found.contrasts.filter(([, contrast]) => contrast < 4.5);
    assert.deepEqual(faint, [], `${colorScheme}: too faint`);
  }
}

// What the policy does not allow, were it to come into the page.
async function policy() {
  console.log("the policy holds: foreign scripts, styles, pictures and requests are blocked");
  const { page } = await open({ width: 900, height: 700 });
  opened.pop();
  const done = await page.evaluate(async () => {
    const script = document.createElement("script");
    script.textContent = "window.broken = 1";
    const style = document.createElement("style");
    style.textContent = "body { display: none }";
    const image = new Image();
    image.src = "http://127.0.0.2:9/x.png";
    document.body.append(script, style, image);
    const asked = await fetch("http://127.0.0.2:9/").then(() => "answered", () => "blocked");
    await new Promise((resolve) => setTimeout(resolve, 200));
    return { broken: window.broken, asked, display: getComputedStyle(document.body).display, violations: window.violations };
  });
  assert.deepEqual([done.broken, done.asked, done.display], [undefined, "blocked", "block"]);
  for (const directive of ["script-src", "style-src", "img-src", "connect-src"]) {
    assert.ok(done.violations.some((one) => one.startsWith(directive)), `${directive}: ${done.violations}`);
  }
}

async function call(path, body) {
  const response = await fetch(origin + path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body) });
  const answer = await response.json();
  assert.ok(response.ok, JSON.stringify(answer));
  return answer;
}

async function models() {
  // A name that nobody has had.
  const name = `page-${process.pid}`;
  const versions = [];
  for (const path of paths) versions.push((await call("/admin/versions", { path })).name);
  const short = versions.map((name) => name.slice(7, 19));
  const { page } = await open({ width: 900, height: 900 });
  const box = page.locator("fieldset", { has: page.locator(`legend:text-is('${name}')`) });
  // Asks the model, and says which version answered.
  const answered = async () => {
    await page.selectOption("#model", name);
    const response = page.waitForResponse("**/v1/chat/completions");
    await send(page, "Which one are you?", 8);
    const version = (await response).headers()["x-breakers-version"];
    await idle(page);
    assert.notEqual(await last(page, "assistant").textContent(), "");
    return version;
  };

  console.log("models: a version is deployed under a new name, and answers");
  await page.locator("#models summary").click();
  await page.fill("#alias", name);
  await page.selectOption("#version", versions[0]);
  await page.click("#new button");
  await told(page, `${name}: done`);
  assert.equal(await answered(), versions[0]);

  console.log("models: another one is deployed, and answers; rolled back, the first does again");
  await box.locator("select").selectOption(versions[1]);
  await box.getByRole("button", { name: "Deploy" }).click();
  await box.locator("li", { hasText: `${short[1]} active` }).waitFor();
  await told(page, `${name}: done`);
  assert.equal(await answered(), versions[1]);
  await box.getByRole("button", { name: "Roll back" }).click();
  await box.locator("li", { hasText: `${short[0]} active` }).waitFor();
  await told(page, `${name}: done`);
  assert.equal(await answered(), versions[0]);
  assert.ok(await box.getByRole("button", { name: "Roll back" }).isDisabled(), "there is nothing to roll back to");

  console.log("models: shares and shadows are shown as others set them");
  const admin = (what, body) => call(`/admin/models/${name}/${what}`, body);
  await admin("weights", { weights: { [versions[0]]: 3, [versions[1]]: 1 } });
  await box.locator("li", { hasText: `${short[0]} 75 % active` }).waitFor();
  await box.locator("li", { hasText: `${short[1]} 25 % active` }).waitFor();
  await admin("deploy", { version: versions[0] });
  await admin("shadow", { version: versions[1] });
  const secret = box.locator("li", { hasText: `${short[1]} in secret` });
  await secret.waitFor();
  await page.fill("#temperature", "0");
  assert.equal(await answered(), versions[0]);
  await page.waitForFunction(() => /in secret: (1 the same, 0|0 the same, 1) different, 0 failed/
    .test(document.querySelector("#aliases").textContent), null, { timeout: 20000 });
  await admin("shadow", { version: null });
  await secret.waitFor({ state: "detached" });

  console.log("models: what somebody else has changed meanwhile is not overwritten");
  const stale = await (await fetch(origin + "/admin/models")).text();
  const hold = (route) => route.fulfill({ contentType: "application/json", body: stale });
  await page.route("**/admin/models", hold);
  await admin("deploy", { version: versions[1] });
  await box.locator("select").selectOption(versions[0]);
  await box.getByRole("button", { name: "Deploy" }).click();
  await page.waitForFunction(() => /changed|another|meanwhile/.test(document.querySelector("#told").textContent));
  await page.unroute("**/admin/models", hold);
  await box.locator("li", { hasText: `${short[1]} active` }).waitFor();

  console.log("models by keyboard: opened, chosen, deployed and rolled back; the focus stays");
  await page.reload();
  await page.waitForFunction(() => !document.querySelector("#models").hidden);
  const focus = async (place) => {
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press("Tab");
      const here = await page.evaluate(() => {
        const one = document.activeElement;
        return one.dataset.place ?? (one.tagName === "SUMMARY" ? one.textContent : one.id);
      });
      if (here === place) return;
    }
    assert.fail(`${place} is not reached`);
  };
  const place = () => page.evaluate(() => document.activeElement.dataset.place);
  await focus("Models");
  await page.keyboard.press("Enter");
  await focus(`select ${name}`);
  const options = await box.locator("select option").evaluateAll((all) => all.map((one) => one.value));
  await page.keyboard.press("Home");
  for (let i = 0; i < options.indexOf(versions[0]); i++) await page.keyboard.press("ArrowDown");
  await focus(`Deploy ${name}`);
  await page.keyboard.press("Enter");
  await box.locator("li", { hasText: `${short[0]} active` }).waitFor();
  await told(page, `${name}: done`);
  assert.equal(await place(), `Deploy ${name}`);
  await focus(`Roll back ${name}`);
  for (let i = 0; i < 20 && await box.getByRole("button", { name: "Roll back" }).isEnabled(); i++) {
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /done|before/.test(document.querySelector("#told").textContent));
    await page.waitForTimeout(200);
  }
  assert.equal(await place(), `select ${name}`, "the focus goes on where it can");

  console.log("models: names and failures are text and no markup, and fit into 320 pixels");
  const row = { name: `sha256:${hostile}`, path: hostile + "x".repeat(100), state: "failed", failure: hostile };
  const alias = { id: 1, alias: hostile, shares: [{ version: row.name, weight: 1 }], shadow: null, shadows: [], back: null };
  const small = await open({ width: 320, height: 600 });
  for (const [path, data] of [["versions", [row]], ["models", [alias]]]) {
    await small.page.route(`**/admin/${path}`, (route) => route.fulfill({ json: { object: "list", data } }));
  }
  await small.page.locator("#models summary").click();
  await small.page.locator(`legend:text-is(${JSON.stringify(hostile)})`).waitFor();
  await small.page.locator("#failures li").waitFor();
  assert.equal(await small.page.locator("#models img, #models script, #models b").count(), 0);
  assert.equal(await small.page.evaluate(() => window.broken), undefined);
  await fits(small.page, 320);
  await small.page.unroute("**/admin/models");
  await small.page.unroute("**/admin/versions");
  await small.page.locator(`legend:text-is('${name}')`).waitFor();
  await fits(small.page, 320);
  return page;
}

assert.ok([undefined, "models"].includes(values.only), "--only goes with `models`");
if (!values.only) {
  await chat();
  await keyboard();
  await narrow();
  await colors();
  await policy();
}
if (paths.length) await models();

console.log("no request to anybody else, nothing against the policy, no error of the page's own");
for (const { page, seen } of opened) {
  const foreign = seen.requests.filter((url) => new URL(url).origin !== origin);
  assert.deepEqual(foreign, []);
  assert.deepEqual(await page.evaluate(() => window.violations), []);
  // Browsers report what they were refused, or what was not there, as errors: an icon; routes that this server lacks; conflicts.
  const own = seen.errors.filter((text) => !/status of (404|409)|ERR_CONNECTION_REFUSED/.test(text));
  assert.deepEqual(own, []);
}

if (values.screenshot) {
  const { page } = await open({ width: 900, height: 700 }, { colorScheme: "light" });
  await send(page, "Name three rivers of Europe.", 40);
  await idle(page);
  if (paths.length) {
    // Two versions that share a name.
    const { data } = await call("/admin/models");
    const weights = Object.fromEntries((await call("/admin/versions")).data.map((one, i) => [one.name, i ? 1 : 3]));
    await call(`/admin/models/${data[0].alias}/weights`, { weights });
    await page.locator("#models summary").click();
  }
  // With figures and a line.
  await page.waitForTimeout(4000);
  await page.screenshot({ path: values.screenshot, fullPage: true });
}
await browser.close();
console.log("all passed");
