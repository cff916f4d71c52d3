#include "coordinator/api/api_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace packtrain {
namespace {

constexpr std::array<std::string_view, 9> kPaths = {"/v1/chat/completions",
                                                    "/v1/completions",
                                                    "/v1/models",
                                                    "/health",
                                                    "/ready",
                                                    "/metrics",
                                                    "/plan",
                                                    "/tokenize",
                                                    "/detokenize"};

template <typename Family>
prometheus::Family<Family>& Add(prometheus::detail::Builder<Family> builder, const char* name,
                                const char* help, prometheus::Registry& registry) {
  return builder.Name(name).Help(help).Register(registry);
}

}  // namespace

struct ApiMetrics::Impl {
  explicit Impl(std::shared_ptr<prometheus::Registry> shared)
      : registry(std::move(shared)),
        replies(Add(prometheus::BuildCounter(), "packtrain_http_requests_total",
                    "Requests by path and status; 499 is a client that left", *registry)),
        prompt_tokens(Add(prometheus::BuildCounter(), "packtrain_prompt_tokens_total",
                          "Prompt tokens of completed requests", *registry)),
        cached_tokens(Add(prometheus::BuildCounter(), "packtrain_cached_prompt_tokens_total",
                          "Prompt tokens whose KV cache was reused", *registry)),
        completion_tokens(Add(prometheus::BuildCounter(), "packtrain_completion_tokens_total",
                              "Generated tokens of completed requests", *registry)),
        connections(Add(prometheus::BuildGauge(), "packtrain_http_connections",
                        "Open client connections", *registry)
                        .Add({})),
        requests(Add(prometheus::BuildGauge(), "packtrain_requests",
                     "Requests that hold a slot (running) or wait for one", *registry)),
        slots(Add(prometheus::BuildGauge(), "packtrain_slots", "Slots, used and free", *registry)),
        kv_pages(Add(prometheus::BuildGauge(), "packtrain_kv_pages",
                     "KV pages: used by requests, cached for prompts to come, free", *registry)),
        preemptions(Add(prometheus::BuildCounter(), "packtrain_preemptions_total",
                        "Requests sent back to waiting because KV pages ran out", *registry)),
        decode_step(Add(prometheus::BuildGauge(), "packtrain_decode_step_seconds",
                        "Where the time of a decode step goes, medians of the last ones",
                        *registry)),
        decode_experts(Add(prometheus::BuildGauge(), "packtrain_decode_experts_read",
                           "Distinct experts that experts workers read for a layer of a decode "
                           "step, median of the last ones",
                           *registry)),
        decode_operations(Add(prometheus::BuildGauge(), "packtrain_decode_gpu_operations",
                              "Kernels and copies of a decode step, median of the last ones",
                              *registry)) {}

  std::shared_ptr<prometheus::Registry> registry;  // shared with the deployments
  prometheus::Family<prometheus::Counter>& replies;
  prometheus::Family<prometheus::Counter>& prompt_tokens;
  prometheus::Family<prometheus::Counter>& cached_tokens;
  prometheus::Family<prometheus::Counter>& completion_tokens;
  prometheus::Gauge& connections;
  prometheus::Family<prometheus::Gauge>& requests;
  prometheus::Family<prometheus::Gauge>& slots;
  prometheus::Family<prometheus::Gauge>& kv_pages;
  prometheus::Family<prometheus::Counter>& preemptions;
  prometheus::Family<prometheus::Gauge>& decode_step;
  prometheus::Family<prometheus::Gauge>& decode_experts;
  prometheus::Family<prometheus::Gauge>& decode_operations;
};

ApiMetrics::ApiMetrics(std::shared_ptr<prometheus::Registry> registry)
    : impl_(std::make_unique<Impl>(std::move(registry))) {}

ApiMetrics::~ApiMetrics() = default;

void ApiMetrics::CountReply(const std::string& path, int status) {
  const auto known = std::find(kPaths.begin(), kPaths.end(), std::string_view(path));
  impl_->replies
      .Add({{"path", known == kPaths.end() ? "other" : path}, {"code", std::to_string(status)}})
      .Increment();
}

void ApiMetrics::CountTokens(const std::string& model, int prompt, int cached, int completion) {
  impl_->prompt_tokens.Add({{"model", model}}).Increment(prompt);
  impl_->cached_tokens.Add({{"model", model}}).Increment(cached);
  impl_->completion_tokens.Add({{"model", model}}).Increment(completion);
}

void ApiMetrics::SetConnections(size_t connections) {
  impl_->connections.Set(static_cast<double>(connections));
}

void ApiMetrics::SetLoad(const std::string& model, const DeploymentLoad& load) {
  const auto set = [&model](prometheus::Family<prometheus::Gauge>& family, const char* state,
                            int value) {
    family.Add({{"model", model}, {"state", state}}).Set(value);
  };
  set(impl_->requests, "running", load.requests_running);
  set(impl_->requests, "waiting", load.requests_waiting);
  set(impl_->slots, "used", load.slots_used);
  set(impl_->slots, "free", load.slots - load.slots_used);
  set(impl_->kv_pages, "used", load.kv_pages_used);
  set(impl_->kv_pages, "cached", load.kv_pages_cached);
  set(impl_->kv_pages, "free", load.kv_pages - load.kv_pages_used - load.kv_pages_cached);
  const StepTimes& step = load.decode_step;
  for (const auto& [part, us] : {std::pair("experts", step.experts),
                                 {"compute", step.compute},
                                 {"hops", step.hops()},
                                 {"control", step.control}}) {
    impl_->decode_step.Add({{"model", model}, {"part", part}}).Set(us * 1e-6);
  }
  impl_->decode_experts.Add({{"model", model}}).Set(step.experts_read);
  impl_->decode_operations.Add({{"model", model}}).Set(step.gpu_operations);
  prometheus::Counter& preemptions = impl_->preemptions.Add({{"model", model}});
  preemptions.Increment(std::max(0.0, static_cast<double>(load.preemptions) - preemptions.Value()));
}

std::string ApiMetrics::Serialize() const {
  return prometheus::TextSerializer().Serialize(impl_->registry->Collect());
}

}  // namespace packtrain
