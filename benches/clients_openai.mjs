// OpenAI's client for Node and the AI SDK against a server of ours.
//
//     node clients_openai.mjs http://127.0.0.1:8080/v1 [KEY]
//
// The server is `cargo run -p breakers-serve --example scripted`, whose answers are known. Prints a line for each check and ends
// with an error at the first that fails. Needs `npm install openai@6 ai@6 @ai-sdk/openai-compatible@2 zod` in the current folder.

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

const { default: OpenAI } = await load("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const chat = client.chat.completions;

console.log("openai: whole, streamed, n = 3");
const whole = await chat.create({ model: "scripted", messages: say("one two three") });
assert.equal(whole.choices[0].message.content, "one two three");
const helper = chat.stream({ model: "scripted", messages: say("one two three"), n: 3, logprobs: true, stream_options: { include_usage: true } });
const final = await helper.finalChatCompletion();
assert.deepEqual(final.choices.map((choice) => choice.message.content), Array(3).fill("one two three"));
assert.equal(final.choices[2].logprobs.content.length, 3);
assert.equal(final.usage.completion_tokens, 9);

console.log("openai: parallel calls, streamed");
const calls = await chat.stream({ model: "scripted", messages: say("note"), tools, parallel_tool_calls: true }).finalChatCompletion();
assert.equal(calls.choices[0].finish_reason, "tool_calls");
assert.deepEqual(calls.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments)), [person, person]);

console.log("openai: vectors in base64, models, errors");
const vectors = await client.embeddings.create({ model: "counts", input: ["one", "one two"] });
assert.deepEqual(vectors.data.map((one) => [...one.embedding]), [[3, 1, 1], [7, 2, 1]]);
assert.equal((await client.models.retrieve("scripted")).id, "scripted");
await assert.rejects(chat.create({ model: "none", messages: say("x") }), OpenAI.NotFoundError);
await assert.rejects(chat.create({ model: "scripted", messages: say("x"), store: true }), (error) => error.param === "store");
await assert.rejects(chat.stream({ model: "scripted", messages: say("break") }).finalChatCompletion(), /told to break/);

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

const { generateText, streamText, generateObject, tool, jsonSchema } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const model = createOpenAICompatible({ name: "ours", baseURL, apiKey, supportsStructuredOutputs: true })("scripted");

console.log("ai: text, stream, object, calls");
assert.equal((await generateText({ model, prompt: "one two three" })).text, "one two three");
let text = "";
for await (const piece of streamText({ model, prompt: "one two three" }).textStream) text += piece;
assert.equal(text, "one two three");
assert.deepEqual((await generateObject({ model, prompt: "who?", schema: jsonSchema(parameters) })).object, person);
const result = streamText({ model, prompt: "note", tools: { person: tool({ inputSchema: jsonSchema(parameters) }) } });
assert.deepEqual((await result.toolCalls).map((call) => call.input), [person]);
assert.equal(await result.finishReason, "tool-calls");
console.log("all passed");
