// The official TypeScript SDK through the relay. One JSON argument; one JSON line for each check on standard output.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import Anthropic from "@anthropic-ai/sdk";

const { url, key, emptyKey, disabledKey, directory, model } = JSON.parse(process.argv[2]);
const LIMIT_MS = 15_000;
const HELLO = [{ role: "user", content: "Hello" }];
const client = new Anthropic({ baseURL: url, apiKey: key });
const once = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });

const TOOL = {
  name: "save_note",
  description: "Save a note to a file",
  input_schema: {
    type: "object",
    properties: { name: { type: "string" }, text: { type: "string" } },
    required: ["name", "text"],
  },
};

const textOf = (message) => message.content.map((block) => (block.type === "text" ? block.text : "")).join("");
const failing = (scenario) => ({ headers: { "x-sim-scenario": scenario } });
const hello = (extra = {}) => ({ model, max_tokens: 100, messages: HELLO, ...extra });

async function rejects(promise, kind, status, type) {
  const error = await promise.then(
    () => assert.fail("an answer instead of an error"),
    (reason) => reason,
  );
  assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.equal(error.status, status);
  if (type) assert.equal(error.error.error.type, type);
  return error;
}

const checks = {
  async message() {
    const { data, request_id } = await client.messages.create(hello()).withResponse();
    assert.ok(textOf(data).length > 0 && data.usage.output_tokens > 0 && data.stop_reason === "end_turn");
    assert.ok(request_id);
  },

  async stream() {
    const stream = client.messages.stream(hello());
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const final = await stream.finalMessage();
    assert.ok(text.length > 0);
    assert.equal(textOf(final), text);
  },

  async tools() {
    const wanted = { name: "note.txt", text: "written by a tool — 中文" };
    const messages = [{ role: "user", content: `use the save_note tool with ${JSON.stringify(wanted)}` }];
    for (let turn = 0; turn < 5; turn++) {
      const answer = await client.messages
        .stream({ model, max_tokens: 500, messages, tools: [TOOL] })
        .finalMessage();
      messages.push({ role: "assistant", content: answer.content });
      if (answer.stop_reason !== "tool_use") break;
      const results = [];
      for (const block of answer.content) {
        if (block.type !== "tool_use") continue;
        await writeFile(join(directory, block.input.name), block.input.text);
        results.push({ type: "tool_result", tool_use_id: block.id, content: "saved as note.txt" });
      }
      messages.push({ role: "user", content: results });
    }
    assert.equal(messages.length, 4, "one call of the tool, one closing answer");
    assert.equal(await readFile(join(directory, wanted.name), "utf8"), wanted.text);
    assert.match(textOf(messages[3]), /saved as note\.txt/);
  },

  async "count_tokens and models, with an empty balance"() {
    const free = new Anthropic({ baseURL: url, apiKey: emptyKey });
    assert.ok((await free.messages.countTokens({ model, messages: HELLO })).input_tokens > 0);
    const ids = [];
    for await (const entry of free.models.list({ limit: 1000 })) ids.push(entry.id);
    assert.ok(ids.includes(model));
    assert.equal((await free.models.retrieve(model)).id, model);
  },

  async "401: a key nobody issued, a disabled key"() {
    const strange = new Anthropic({ baseURL: url, apiKey: "sk-cr-nobody" });
    await rejects(strange.messages.create(hello()), Anthropic.AuthenticationError, 401, "authentication_error");
    const disabled = new Anthropic({ baseURL: url, apiKey: disabledKey });
    await rejects(disabled.messages.create(hello()), Anthropic.AuthenticationError, 401, "authentication_error");
  },

  async "402: an empty balance"() {
    const empty = new Anthropic({ baseURL: url, apiKey: emptyKey });
    const error = await rejects(empty.messages.create(hello()), Anthropic.PaymentRequiredError, 402, "insufficient_balance");
    assert.match(error.message, /balance/);
  },

  async "404: an unknown model"() {
    await rejects(once.messages.create(hello({ model: "claude-none-1" })), Anthropic.NotFoundError, 404, "not_found_error");
  },

  async "400, 413, 529 of the upstream"() {
    await rejects(once.messages.create(hello(), failing("error:400")), Anthropic.BadRequestError, 400);
    await rejects(once.messages.create(hello(), failing("error:413")), Anthropic.ContentTooLargeError, 413);
    await rejects(once.messages.create(hello(), failing("error:529")), Anthropic.OverloadedError, 529);
  },

  async "an error inside a stream"() {
    const stream = once.messages.stream(hello(), failing("error_event"));
    await assert.rejects(stream.finalMessage(), Anthropic.APIError);
  },

  async "a stream that is cut off"() {
    const stream = once.messages.stream(hello(), failing("cut;after=4"));
    await assert.rejects(stream.finalMessage(), Anthropic.AnthropicError);
  },

  // the last: it takes the one upstream credential out of service
  async "529 for what is the operator's trouble"() {
    await rejects(once.messages.create(hello(), failing("error:401")), Anthropic.OverloadedError, 529);
  },
};

const timeLimit = () =>
  new Promise((_, reject) => setTimeout(() => reject(new Error(`no end within ${LIMIT_MS} ms`)), LIMIT_MS).unref());

for (const [name, check] of Object.entries(checks)) {
  const started = performance.now();
  const line = { name, ok: true, detail: "" };
  try {
    await Promise.race([check(), timeLimit()]);
  } catch (error) {
    line.ok = false;
    line.detail = `${error.constructor.name}: ${error.message}`;
  }
  line.seconds = (performance.now() - started) / 1000;
  console.log(JSON.stringify(line));
}
process.exit(0); // a check that has not ended must not keep the others' results back
