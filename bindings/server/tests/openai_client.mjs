// The published client library of the API, unmodified, against a running server.
//   node openai_client.mjs http://127.0.0.1:8080
import assert from "node:assert/strict";
import {createRequire} from "node:module";

// From NODE_PATH, which imports do not look at.
const {default: OpenAI} = createRequire(import.meta.url)("openai");
const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0});

const models = await client.models.list();
const model = models.data[0].id;
assert.equal((await client.models.retrieve(model)).id, model);

const messages = [{role: "system", content: "Speak verse."}, {role: "user", content: "Hello"}];
const options = {model, messages, temperature: 0, max_completion_tokens: 24};
const whole = await client.chat.completions.create({...options, logprobs: true, top_logprobs: 2});
assert.equal(whole.choices[0].message.role, "assistant");
assert.ok(whole.choices[0].message.content.length > 10);
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.choices[0].logprobs.content.length, 24);
assert.equal(whole.usage.completion_tokens, 24);

let text = "", usage = null;
const stream = await client.chat.completions.create(
  {...options, stream: true, stream_options: {include_usage: true}});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

// The client's own collector of streams.
const runner = client.chat.completions.stream(options);
assert.equal(await runner.finalContent(), text);

const completion = await client.completions.create(
  {model, prompt: ["ROMEO:", "JULIET:"], n: 2, seed: 5, max_tokens: 12, stop: ["\n\n\n"]});
assert.deepEqual(completion.choices.map(choice => choice.index), [0, 1, 2, 3]);

// A stream that is left early.
const left = await client.completions.create({model, prompt: "ROMEO:", max_tokens: 200, stream: true});
for await (const chunk of left) {
  assert.ok(chunk.choices[0].text !== undefined);
  break;
}

await assert.rejects(client.chat.completions.create({...options, model: "other"}),
  error => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
await assert.rejects(client.chat.completions.create({...options, temperature: -1}),
  error => error instanceof OpenAI.BadRequestError && error.param === "temperature");
console.log("the client library works");
