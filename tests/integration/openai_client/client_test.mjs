// The unmodified `openai` client against our HTTP API with scripted answers.
//
//   node client_test.mjs SERVER_BINARY     starts the scripted server and talks to it
//
// The scripted server (tests/integration/scripted_server.cc) answers every chat with
// "\nwhy</think>\nHello, world" and every text prompt with "ok".

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';

import { loadClient, runTests } from './harness.mjs';

const OpenAI = await loadClient();
const server = spawn(process.argv[2], { stdio: ['pipe', 'pipe', 'inherit'] });
const [line] = await once(server.stdout, 'data');
const port = Number(/^port (\d+)/.exec(line.toString())[1]);
const client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: 'unused', maxRetries: 0 });
const messages = [{ role: 'user', content: 'Hi' }];

const tests = {
  async 'a chat is answered'() {
    const reply = await client.chat.completions.create({ model: 'big', messages });
    assert.equal(reply.choices[0].message.content, 'Hello, world');
    assert.equal(reply.choices[0].finish_reason, 'stop');
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  },
  async 'a chat is streamed with usage'() {
    const stream = await client.chat.completions.create({
      model: 'big', messages, stream: true, stream_options: { include_usage: true } });
    let text = '';
    let usage = null;
    for await (const chunk of stream) {
      if (chunk.choices.length > 0) text += chunk.choices[0].delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, 'Hello, world');
    assert.ok(usage.completion_tokens > 0);
  },
  async 'the stream helper assembles the message'() {
    const final = await client.chat.completions.stream({ model: 'big', messages }).finalChatCompletion();
    assert.equal(final.choices[0].message.content, 'Hello, world');
    assert.equal(final.choices[0].finish_reason, 'stop');
  },
  async 'reasoning comes apart from the answer'() {
    const reply = await client.chat.completions.create({ model: 'big', messages, reasoning_effort: 'high' });
    assert.equal(reply.choices[0].message.reasoning_content, 'why');
    assert.equal(reply.choices[0].message.content, 'Hello, world');
    assert.ok(reply.usage.completion_tokens_details.reasoning_tokens > 0);
  },
  async 'log-probabilities have the shape of the types'() {
    const reply = await client.chat.completions.create({
      model: 'big', messages, logprobs: true, top_logprobs: 2 });
    const [first] = reply.choices[0].logprobs.content;
    assert.equal(typeof first.token, 'string');
    assert.equal(first.logprob, -0.5);
    assert.equal(first.top_logprobs.length, 2);
  },
  async 'texts are completed, one or many'() {
    const one = await client.completions.create({ model: 'small', prompt: 'a', echo: true, logprobs: 1 });
    assert.equal(one.choices[0].text, 'aok');
    assert.equal(one.choices[0].logprobs.tokens.length, one.choices[0].logprobs.token_logprobs.length);
    const many = await client.completions.create({ model: 'small', prompt: ['a', 'b'], n: 2 });
    assert.deepEqual(many.choices.map((choice) => choice.index), [0, 1, 2, 3]);
    const ids = await client.completions.create({ model: 'small', prompt: [97, 98], max_tokens: 1 });
    assert.equal(ids.choices[0].finish_reason, 'length');
    let text = '';
    for await (const chunk of await client.completions.create({ model: 'small', prompt: 'a', stream: true })) {
      text += chunk.choices[0]?.text ?? '';
    }
    assert.equal(text, 'ok');
  },
  async 'stop strings and n work together'() {
    const reply = await client.chat.completions.create({ model: 'big', messages, n: 3, stop: [', '] });
    assert.deepEqual(reply.choices.map((choice) => choice.message.content), ['Hello', 'Hello', 'Hello']);
  },
  async 'models are listed and retrieved'() {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    assert.deepEqual(models, ['big', 'small']);
    assert.equal((await client.models.retrieve('small')).id, 'small');
  },
  async 'errors arrive as the classes that the client knows'() {
    await assert.rejects(client.chat.completions.create({ model: 'gpt-5', messages }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, 'model_not_found');
      assert.match(error.message, /big, small/);
      return true;
    });
    await assert.rejects(client.chat.completions.create({ model: 'big', messages, temperature: 9 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, 'temperature');
      return true;
    });
    const long = [{ role: 'user', content: 'x'.repeat(5000) }];
    await assert.rejects(client.chat.completions.create({ model: 'big', messages: long, stream: true }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.code, 'context_length_exceeded');
      return true;
    });
    await assert.rejects(client.embeddings.create({ model: 'big', input: 'x' }), OpenAI.NotFoundError);
  },
  async 'an aborted stream leaves the server well'() {
    const stream = await client.chat.completions.create({ model: 'big', messages, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      break;
    }
    assert.ok(await client.chat.completions.create({ model: 'big', messages }));
  },
};

const failed = await runTests(tests);
server.stdin.end();
await once(server, 'exit');
process.exit(failed === 0 ? 0 : 1);
