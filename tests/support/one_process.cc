// A whole model in one process, without coordinator or workers: what served models are compared
// with, in tokens and in speed.
//
//   packtrain_one_process MODEL.gguf THREADS CONTEXT < requests.json > replies.json
//
// requests: [{"prompt": [ids], "max_tokens": n, "temperature": t, "seed": s}, ...];
// end-of-generation tokens are tokens like others. replies: [{"token_ids": [], "logprobs": [],
// "decode_ms": x}, ...], decode_ms from the first token to the last.

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tests/support/model_runner.h"
#include "worker/ops/sampler.h"

namespace packtrain {
namespace {

using nlohmann::json;

json Run(const TestModel& model, const ModelRunnerOptions& options, const json& request) {
  ModelRunner runner(model, options);
  const auto vocab_size = static_cast<size_t>(model.config.vocab_size);
  std::vector<TokenId> ids = request["prompt"];
  const auto prompt_tokens = static_cast<int32_t>(ids.size());
  SamplingParams params;
  params.temperature = request["temperature"];
  params.seed = request["seed"];
  Sampler sampler;
  json reply = {{"token_ids", json::array()}, {"logprobs", json::array()}};
  std::vector<SlotRows> rows = {{.tokens = ids}};
  std::chrono::steady_clock::time_point first;
  for (int i = 0; i < request["max_tokens"]; ++i) {
    const std::span<const float> logits = runner.Step(rows).last(vocab_size);
    const TokenId token = sampler.Sample(
        {.logits = logits, .params = &params, .ids = ids, .prompt_tokens = prompt_tokens});
    reply["token_ids"].push_back(token);
    reply["logprobs"].push_back(Sampler::Logprob(logits, token));
    if (i == 0) first = std::chrono::steady_clock::now();
    rows = {{.start = static_cast<int>(ids.size()), .tokens = {token}}};
    ids.push_back(token);
  }
  reply["decode_ms"] =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - first).count();
  return reply;
}

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: packtrain_one_process MODEL.gguf THREADS CONTEXT\n";
    return 2;
  }
  const TestModel model(argv[1]);
  ModelRunnerOptions options;
  options.threads = std::atoi(argv[2]);
  options.context = std::atoi(argv[3]);
  options.kv_cache = KvCacheType::kF16;
  const char* isa = std::getenv("PACKTRAIN_ISA");
  options.isa = isa == nullptr ? "" : isa;
  json replies = json::array();
  for (const json& request : json::parse(std::cin)) {
    replies.push_back(Run(model, options, request));
  }
  std::cout << replies.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) { return packtrain::Main(argc, argv); }
