// Drives a running Millgate with OpenAI's own Node client, as an application would.
//
// Environment: as python_client.py beside this file. Prints one line a check; exits with 0 only when every check held.

import assert from "node:assert/strict";
import OpenAI from "openai";

const { MILLGATE_URL, MILLGATE_MODEL: model, MILLGATE_HIDDEN_MODEL } = process.env;
const messages = [{ role: "user", content: "Say hello." }];

const client = (keyVariable, options = {}) =>
  new OpenAI({ baseURL: MILLGATE_URL, apiKey: process.env[keyVariable], maxRetries: 0, ...options });

async function raised(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `expected ${kind.name}, got ${error}`);
    return error;
  }
  assert.fail(`expected ${kind.name}, nothing was raised`);
}

const checks = {
  async chat_answers_with_exact_usage() {
    const reply = await client("MILLGATE_KEY").chat.completions.create({ model, messages, max_tokens: 12, seed: 1 });
    assert.equal(reply.object, "chat.completion");
    assert.equal(reply.usage.prompt_tokens + reply.usage.completion_tokens, reply.usage.total_tokens);
    assert.ok(reply.usage.completion_tokens > 0 && reply.usage.completion_tokens <= 12);
  },

  async a_stream_adds_up_to_the_plain_answer() {
    const same = { model, messages, max_tokens: 16, temperature: 0 };
    const plain = await client("MILLGATE_KEY").chat.completions.create(same);
    const stream = await client("MILLGATE_KEY").chat.completions.create({ ...same, stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
    assert.equal(text, plain.choices[0].message.content);
  },

  async models_are_listed() {
    const ids = [];
    for await (const entry of client("MILLGATE_KEY").models.list()) ids.push(entry.id);
    assert.ok(ids.includes(model));
  },

  async errors_map_to_the_clients_classes() {
    const ask = (who, changes = {}) => who.chat.completions.create({ model, messages, max_tokens: 4, ...changes });
    const good = client("MILLGATE_KEY");
    const bad = await raised(OpenAI.BadRequestError, () => ask(good, { top_p: 7 }));
    assert.equal(bad.param, "top_p");
    assert.equal(bad.type, "invalid_request_error");
    await raised(OpenAI.AuthenticationError, () => ask(client("MILLGATE_REVOKED_KEY")));
    await raised(OpenAI.NotFoundError, () => ask(good, { model: "no-such-model" }));
    await raised(OpenAI.PermissionDeniedError, () => ask(good, { model: MILLGATE_HIDDEN_MODEL }));
  },

  async a_limit_is_a_rate_limit_error_and_automatic_retry_gets_through() {
    const ask = (who) => who.chat.completions.create({ model, messages, max_tokens: 2 });
    await ask(client("MILLGATE_LIMITED_KEY", { maxRetries: 2 }));
    const error = await raised(OpenAI.RateLimitError, () => ask(client("MILLGATE_LIMITED_KEY")));
    assert.equal(error.type, "rate_limit_error");
    const wait = Number(error.headers.get("retry-after-ms"));
    assert.ok(wait > 0 && wait <= 2100, `retry-after-ms is ${wait}`);
    const began = performance.now();
    await ask(client("MILLGATE_LIMITED_KEY", { maxRetries: 2 }));
    assert.ok(performance.now() - began >= wait * 0.5, "the retry did not wait as the header says");
  },

  async leaving_a_stream_closes_it() {
    const stream = await client("MILLGATE_KEY").chat.completions.create({ model, messages, max_tokens: 200, stream: true });
    for await (const _ of stream) break;
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`held: ${name}`);
}
