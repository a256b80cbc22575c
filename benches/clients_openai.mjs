// OpenAI's client for Node and the AI SDK against a server of ours.
//
//     node clients_openai.mjs http://127.0.0.1:8080/v1 [KEY]
//
// The server is `cargo run -p breakers-serve --features batches --example scripted -- 127.0.0.1:8080 KEY FOLDER`, whose answers
// are known; an empty KEY is none. `cargo xtask serving` does all of it. Prints a line for each check and ends with an error at
// the first that fails. The current folder needs the packages of `clients/package.json`.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Packages are those of the folder in which this is started.
const { resolve } = createRequire(pathToFileURL(process.cwd() + "/"));
const load = (name) => import(pathToFileURL(resolve(name)));

const [baseURL = "http://127.0.0.1:8080/v1", apiKey = "none"] = process.argv.slice(2);
const say = (content) => [{ role: "user", content }];
const parameters = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "person", parameters, strict: true } }];
const person = { name: "Ann", age: 7 };

const { default: OpenAI, toFile } = await load("openai");
const { zodFunction, zodResponseFormat, zodTextFormat } = await import(pathToFileURL(resolve("openai/helpers/zod")));
const { z } = await load("zod");
const Person = z.object({ name: z.string(), age: z.number().int() });
// The sum of a metric's values.
async function counted(name) {
  const answer = await fetch(baseURL.replace(/\/v1$/, "/metrics"), { headers: { authorization: `Bearer ${apiKey}` } });
  const found = (await answer.text()).matchAll(new RegExp(`^breakers_${name}(?:{.*})? (\\S+)$`, "gm"));
  return [...found].reduce((sum, [, value]) => sum + Number(value), 0);
}
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
async function until(what, condition) {
  for (let i = 0; i < 100; i++) {
    if (await condition()) return;
    await sleep(30);
  }
  assert.fail(`never: ${what}`);
}
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const chat = client.chat.completions;

console.log("openai: whole, streamed, n = 3");
const whole = await chat.create({ model: "scripted", messages: say("one two three") });
assert.equal(whole.choices[0].message.content, "one two three");
assert.match(whole._request_id, /^req_/);
const many = await chat.create({ model: "scripted", messages: say("one"), n: 3, logprobs: true, top_logprobs: 2, user: "u" });
assert.deepEqual(many.choices.map((choice) => [choice.index, choice.message.content]), [[0, "one"], [1, "one"], [2, "one"]]);
assert.deepEqual(many.choices[1].logprobs.content[0].top_logprobs.map((top) => top.token), ["a", "b"]);
const helper = chat.stream({ model: "scripted", messages: say("one two three"), n: 3, logprobs: true, stream_options: { include_usage: true } });
const final = await helper.finalChatCompletion();
assert.deepEqual(final.choices.map((choice) => choice.message.content), Array(3).fill("one two three"));
assert.equal(final.choices[2].logprobs.content.length, 3);
assert.equal(final.usage.completion_tokens, 9);

console.log("openai: parallel calls, streamed");
const calls = await chat.stream({ model: "scripted", messages: say("note"), tools, parallel_tool_calls: true }).finalChatCompletion();
assert.equal(calls.choices[0].finish_reason, "tool_calls");
assert.deepEqual(calls.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments)), [person, person]);

console.log("openai: parsed answers and functions, functions that run");
const parsed = await chat.parse({ model: "scripted", messages: say("who?"), response_format: zodResponseFormat(Person, "person") });
assert.deepEqual(parsed.choices[0].message.parsed, person);
const withTool = { model: "scripted", messages: say("who?"), tools: [zodFunction({ name: "person", parameters: Person })] };
const called = await chat.parse(withTool);
assert.deepEqual(called.choices[0].message.tool_calls[0].function.parsed_arguments, person);
await assert.rejects(chat.parse({ ...withTool, tools: undefined, messages: say("who is it now?"), max_completion_tokens: 1,
  response_format: zodResponseFormat(Person, "person") }), OpenAI.LengthFinishReasonError ?? /length/);
const run = ({ name, age }) => `result: ${name} is ${age}`;
const runner = chat.runTools({ model: "scripted", messages: say("who?"),
  tools: [zodFunction({ name: "person", parameters: Person, function: run })] });
assert.equal(await runner.finalContent(), "result: Ann is 7");
const streamedRunner = chat.runTools({ model: "scripted", messages: say("who?"), stream: true,
  tools: [zodFunction({ name: "person", parameters: Person, function: run })] });
assert.equal(await streamedRunner.finalContent(), "result: Ann is 7");

console.log("openai: headers, raw answers");
const { data, response } = await chat.create({ model: "scripted", messages: say("one"), user: "u" },
  { headers: { "x-request-id": "mine", "openai-organization": "o" } }).withResponse();
assert.equal(data.choices[0].message.content, "one");
assert.equal(response.headers.get("x-breakers-ignored"), "user");

console.log("openai: vectors in base64, models, errors by class");
const floats = await client.embeddings.create({ model: "counts", input: "one", encoding_format: "float" });
assert.deepEqual(floats.data[0].embedding, [3, 1, 1]);
const base64 = await client.embeddings.create({ model: "counts", input: "one", encoding_format: "base64" });
assert.equal(base64.data[0].embedding, Buffer.from(new Float32Array([3, 1, 1]).buffer).toString("base64"));
const vectors = await client.embeddings.create({ model: "counts", input: ["one", "one two"] });
assert.deepEqual(vectors.data.map((one) => [...one.embedding]), [[3, 1, 1], [7, 2, 1]]);
assert.equal((await client.models.retrieve("scripted")).id, "scripted");
await assert.rejects(chat.create({ model: "none", messages: say("x") }), OpenAI.NotFoundError);
await assert.rejects(chat.create({ model: "scripted", messages: say("x"), store: true }), (error) => error.param === "store");
await assert.rejects(chat.stream({ model: "scripted", messages: say("break") }).finalChatCompletion(), /told to break/);
await assert.rejects(chat.create({ model: "scripted", messages: say("x"), temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(chat.create({ model: "scripted", messages: say("busy") }), OpenAI.InternalServerError);
await assert.rejects(chat.create({ model: "scripted", messages: say("x".repeat(9_000_000)) }), (error) => error.status === 413);
if (apiKey !== "none") {
  await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
}
const accepted = await counted("requests_accepted_total");
await assert.rejects(chat.create({ model: "scripted", messages: say("busy") }, { maxRetries: 2 }), OpenAI.InternalServerError);
assert.equal(await counted("requests_accepted_total") - accepted, 3);

console.log("openai: a client that waits no longer, or ends its stream: the text ends");
const slow = { model: "scripted", messages: say("slowly " + "word ".repeat(200)) };
const over = await counted("request_ended_total");
await assert.rejects(chat.create(slow, { timeout: 300 }), OpenAI.APIConnectionTimeoutError);
const early = await chat.create({ ...slow, stream: true });
for await (const _ of early) break;
const aborted = chat.stream(slow);
aborted.on("content", () => aborted.abort());
await assert.rejects(aborted.finalChatCompletion(), OpenAI.APIUserAbortError);
await until("the texts have ended", async () => await counted("request_ended_total") === over + 3);
assert.equal(await counted("num_requests_running"), 0);

console.log("openai: files and batches");
const line = (custom_id, content) => JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions",
  body: { model: "scripted", messages: say(content) } });
const file = await client.files.create({ purpose: "batch", expires_after: { anchor: "created_at", seconds: 3600 },
  file: await toFile(Buffer.from([line("a", "one two"), line("b", "break"), ""].join("\n")), "requests.jsonl") });
assert.equal((await client.files.waitForProcessing(file.id)).id, file.id);
const endpoint = "/v1/chat/completions";
let batch = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h", metadata: { a: "b" } });
await until("the batch ended", async () => (batch = await client.batches.retrieve(batch.id)).status === "completed");
assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
const result = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
assert.equal(result.response.body.choices[0].message.content, "one two");
const ids = [];
for await (const one of client.files.list({ limit: 1 })) ids.push(one.id);
assert.ok(new Set(ids).size === ids.length && ids.includes(batch.error_file_id), ids.join());
await assert.rejects(client.batches.cancel(batch.id), OpenAI.ConflictError);
await assert.rejects(client.batches.retrieve("batch_none"), OpenAI.NotFoundError);
assert.equal((await client.files.delete(file.id)).deleted, true);

console.log("openai: responses, streamed and following each other");
const first = await client.responses.create({ model: "scripted", input: "one two three" });
assert.equal(first.output_text, "one two three");
const stream = client.responses.stream({ model: "scripted", input: "four five", previous_response_id: first.id });
let deltas = "";
stream.on("response.output_text.delta", (event) => (deltas += event.delta));
assert.equal((await stream.finalResponse()).output_text, "four five");
assert.equal(deltas, "four five");
const functionTool = { type: "function", name: "person", parameters, strict: true };
const asked = await client.responses.create({ model: "scripted", input: "note", tools: [functionTool] });
assert.deepEqual(JSON.parse(asked.output[0].arguments), person);
await assert.rejects(client.responses.create({ model: "scripted", input: "x", background: true }), (error) => error.param === "background");
const shaped = { model: "scripted", input: "who?", text: { format: zodTextFormat(Person, "person") } };
assert.deepEqual((await client.responses.parse(shaped)).output_parsed, person);
assert.deepEqual((await client.responses.stream(shaped).finalResponse()).output_parsed, person);
const kinds = [];
for await (const event of await client.responses.create({ model: "scripted", input: "note", tools: [functionTool], stream: true })) {
  kinds.push(event.type);
}
assert.ok(kinds.includes("response.function_call_arguments.done") && kinds.at(-1) === "response.completed", kinds.join());
assert.equal((await client.responses.retrieve(first.id)).output_text, "one two three");
await client.responses.delete(first.id);
await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);

const { generateText, streamText, generateObject, streamObject, embedMany, stepCountIs, tool, jsonSchema, APICallError } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const provider = createOpenAICompatible({ name: "ours", baseURL, apiKey, supportsStructuredOutputs: true, includeUsage: true });
const model = provider("scripted");

console.log("ai: text, stream, object, calls");
assert.equal((await generateText({ model, prompt: "one two three" })).text, "one two three");
let text = "";
for await (const piece of streamText({ model, prompt: "one two three" }).textStream) text += piece;
assert.equal(text, "one two three");
assert.deepEqual((await generateObject({ model, prompt: "who?", schema: jsonSchema(parameters) })).object, person);
const asking = streamText({ model, prompt: "note", tools: { person: tool({ inputSchema: jsonSchema(parameters) }) } });
assert.deepEqual((await asking.toolCalls).map((call) => call.input), [person]);
assert.equal(await asking.finishReason, "tool-calls");

console.log("ai: growing objects, functions that run, usage, vectors, errors, streams that are ended");
const growing = streamObject({ model, prompt: "who?", schema: Person });
let parts = 0;
for await (const _ of growing.partialObjectStream) parts++;
assert.deepEqual(await growing.object, person);
assert.ok(parts >= 1);
const ran = await generateText({ model, prompt: "who?", stopWhen: stepCountIs(3),
  tools: { person: tool({ inputSchema: Person, execute: run }) } });
assert.equal(ran.text, "result: Ann is 7");
assert.equal(ran.steps.length, 2);
const used = streamText({ model, prompt: "one two three" });
for await (const _ of used.textStream);
assert.equal((await used.usage).totalTokens, 8);
const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("counts"), values: ["one", "one two"] });
assert.deepEqual(embeddings, [[3, 1, 1], [7, 2, 1]]);
await assert.rejects(generateText({ model: provider("none"), prompt: "x", maxRetries: 0 }),
  (error) => APICallError.isInstance(error) && error.statusCode === 404);
const before = await counted("request_ended_total");
const control = new AbortController();
const ending = streamText({ model, prompt: slow.messages[0].content, abortSignal: control.signal, onError: () => {} });
for await (const _ of ending.textStream) control.abort();
await until("the text has ended", async () => await counted("request_ended_total") === before + 1);
console.log("all passed");
