// The unmodified `openai` client against `packtrain serve` with both demo models.
//
//   node served_models_test.mjs PACKTRAIN_BINARY TOPOLOGY
//
// TOPOLOGY is configs/topologies/cpu-demo.yaml; it is served on a free port.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

import { loadClient, runTests } from './harness.mjs';

const OpenAI = await loadClient();
const [binary, topology] = process.argv.slice(2);

const folder = mkdtempSync(join(tmpdir(), 'packtrain-test-'));
const yaml = join(folder, 'topology.yaml');
writeFileSync(yaml, readFileSync(topology, 'utf8')
  .replace(/^listen: .*$/m, 'listen: 127.0.0.1:0')
  .replace(/path: (.*)$/gm, (_, path) => `path: ${resolve(dirname(topology), path)}`));
const server = spawn(binary, ['serve', yaml], { stdio: ['ignore', 'inherit', 'pipe'] });
let baseURL;
for await (const line of createInterface({ input: server.stderr })) {
  console.log(line);
  baseURL = /^ready: (.*)$/.exec(line)?.[1];
  if (baseURL) break;
}
assert.ok(baseURL, 'the server ended before it was ready');
const client = new OpenAI({ baseURL, apiKey: 'unused', maxRetries: 0 });

const PRIMARY = 'demo-primary';
const SIDECAR = 'demo-sidecar';
const sum = [{ role: 'user', content: 'What is 12 + 30?' }];
const story = [{ role: 'user', content: 'Tell me a story.' }];

async function textOf(stream) {
  let text = '';
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? chunk.choices[0]?.text ?? '';
  }
  return text;
}

const failed = await runTests({
  async 'both models answer a sum'() {
    for (const model of [PRIMARY, SIDECAR]) {
      const reply = await client.chat.completions.create({ model, messages: sum, temperature: 0 });
      assert.match(reply.choices[0].message.content, /42/);
      assert.equal(reply.choices[0].finish_reason, 'stop');
      assert.equal(reply.choices[0].message.reasoning_content, undefined);
    }
  },
  async 'both models stream at once what they answer in one piece'() {
    const ask = (model) => ({ model, messages: story, seed: 3, max_tokens: 80 });
    const whole = await Promise.all([PRIMARY, SIDECAR].map(async (model) =>
      (await client.chat.completions.create(ask(model))).choices[0].message.content));
    const streamed = await Promise.all([PRIMARY, SIDECAR].map(async (model) =>
      textOf(await client.chat.completions.create({ ...ask(model), stream: true }))));
    assert.deepEqual(streamed, whole);
    assert.ok(whole.every((text) => text.length > 20));
  },
  async 'usage comes in a chunk of its own'() {
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({
      model: SIDECAR, messages: sum, stream: true, stream_options: { include_usage: true } })) {
      chunks.push(chunk);
    }
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  },
  async 'the model thinks when asked to'() {
    const reply = await client.chat.completions.create({
      model: PRIMARY, messages: sum, temperature: 0, reasoning_effort: 'high' });
    assert.ok(reply.choices[0].message.reasoning_content.length > 0);
    assert.match(reply.choices[0].message.content, /42/);
    assert.ok(reply.usage.completion_tokens_details.reasoning_tokens > 0);
  },
  async 'log-probabilities are those of the best tokens'() {
    const reply = await client.chat.completions.create({
      model: PRIMARY, messages: sum, temperature: 0, logprobs: true, top_logprobs: 3 });
    for (const token of reply.choices[0].logprobs.content) {
      assert.equal(token.top_logprobs.length, 3);
      assert.equal(token.top_logprobs[0].token, token.token);
      assert.ok(token.logprob <= 0 && token.logprob === token.top_logprobs[0].logprob);
    }
  },
  async 'texts and token ids are completed, with echo and n'() {
    const one = await client.completions.create({
      model: SIDECAR, prompt: 'Once upon', max_tokens: 8, echo: true, logprobs: 1, temperature: 0 });
    const { tokens, token_logprobs } = one.choices[0].logprobs;
    assert.equal(tokens.join(''), one.choices[0].text);
    assert.ok(one.choices[0].text.startsWith('Once upon'));
    assert.equal(token_logprobs[0], null);
    assert.ok(token_logprobs.slice(1).every((p) => p <= 0));
    const many = await client.completions.create({
      model: PRIMARY, prompt: ['Once', [5, 6, 7]], n: 2, max_tokens: 4, seed: 1 });
    assert.deepEqual(many.choices.map((choice) => choice.index), [0, 1, 2, 3]);
    const streamed = await client.completions.create({
      model: SIDECAR, prompt: 'Once upon', max_tokens: 8, temperature: 0, stream: true });
    assert.equal('Once upon' + await textOf(streamed), one.choices[0].text);
  },
  async 'a seed repeats, another differs, and n choices of one seed differ'() {
    const ask = async (seed, n = 1) => (await client.chat.completions.create({
      model: PRIMARY, messages: story, seed, n, max_tokens: 40 })).choices.map((c) => c.message.content);
    assert.deepEqual(await ask(1), await ask(1));
    assert.notDeepEqual(await ask(1), await ask(2));
    assert.equal(new Set(await ask(1, 3)).size, 3);
  },
  async 'a stop string ends the answer in front of itself'() {
    const reply = await client.chat.completions.create({
      model: PRIMARY, messages: sum, temperature: 0, stop: ['42'] });
    assert.doesNotMatch(reply.choices[0].message.content, /42/);
    assert.equal(reply.choices[0].finish_reason, 'stop');
  },
  async 'models are listed with what they are'() {
    const models = [];
    for await (const model of client.models.list()) models.push(model);
    assert.deepEqual(models.map((model) => model.id), [PRIMARY, SIDECAR]);
    for (const model of models) {
      assert.equal(model.context_length, 2048);
      assert.equal(model.state, 'ready');
      assert.ok(model.parameters > 2e7 && model.size_bytes > 1e7);
    }
  },
  async 'errors arrive as the classes that the client knows'() {
    await assert.rejects(client.chat.completions.create({ model: 'gpt-5', messages: sum }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.match(error.message, /demo-primary, demo-sidecar/);
      return true;
    });
    const long = [{ role: 'user', content: 'word '.repeat(3000) }];
    for (const stream of [false, true]) {
      await assert.rejects(client.chat.completions.create({ model: SIDECAR, messages: long, stream }),
        (error) => {
          assert.ok(error instanceof OpenAI.BadRequestError);
          assert.equal(error.code, 'context_length_exceeded');
          return true;
        });
    }
    await assert.rejects(client.chat.completions.create({ model: PRIMARY, messages: [] }),
      OpenAI.BadRequestError);
  },
  async 'an aborted stream leaves the server well'() {
    const stream = await client.chat.completions.create({ model: PRIMARY, messages: story, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      break;
    }
    assert.ok(await client.chat.completions.create({ model: PRIMARY, messages: sum }));
  },
});

server.stderr.resume();
server.kill('SIGINT');
const [code] = await once(server, 'exit');
rmSync(folder, { recursive: true });
process.exit(failed === 0 && code === 0 ? 0 : 1);
