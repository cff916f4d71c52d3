#include "coordinator/placement/speed.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/placement/rates.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

struct PrefillTime {
  double seconds = 0;
  double streamed_bytes = 0;  // from RAM to the device
  const char* bound = "";
};

PrefillTime PrefillOf(const Problem& p, const StageChoice& choice) {
  const StageCandidate& s = p.stages[S(choice.candidate)];
  const double rows = p.shape.max_tokens;
  double flops = p.prefill_flops[0].Of(choice.layers.first, choice.layers.last);
  if (!choice.resident.empty()) {
    flops += p.prefill_expert_flops[0].Of(choice.resident.first, choice.resident.last);
  }
  const double compute = rows * flops / s.flops;
  double parts_compute = 0, streamed = 0, workers = 0;
  for (const ExpertsPart& part : choice.parts) {
    const ExpertsCandidate& e = p.experts[S(part.worker)];
    const double part_flops =
        rows * p.prefill_expert_flops[0].Of(part.layers.first, part.layers.last);
    const double bytes = p.prefill_expert_bytes[0].Of(part.layers.first, part.layers.last);
    workers += std::max(part_flops / e.flops, bytes / e.read);
    if (e.host == s.host) {
      parts_compute += part_flops / s.flops;
      streamed += bytes;
    } else {
      parts_compute += 1e9;  // weights do not cross the network for a chunk
    }
  }
  const bool cuda = s.kind == DeviceKind::kCuda;
  const double with_workers = compute + workers;
  const double with_stream = std::max(compute + parts_compute, streamed / s.link);
  if (choice.parts.empty() || !cuda || with_workers <= with_stream) {
    const bool waits = workers > compute;
    return {with_workers, 0, waits ? "CPU experts" : "compute"};
  }
  return {with_stream, streamed, streamed / s.link > compute + parts_compute ? "link" : "compute"};
}

}  // namespace

double DecodeSeconds(const Problem& problem, const StageChoice& choice) {
  const size_t s = S(choice.candidate);
  double seconds = problem.own_seconds[s].Of(choice.layers.first, choice.layers.last);
  if (!choice.resident.empty()) {
    seconds += problem.resident_seconds[s].Of(choice.resident.first, choice.resident.last);
  }
  for (const ExpertsPart& part : choice.parts) {
    seconds += problem.remote_seconds[s][S(part.worker)].Of(part.layers.first, part.layers.last);
  }
  if (choice.layers.last == problem.num_layers) {
    seconds += static_cast<double>(problem.model->weights.head) / problem.stages[s].read;
  }
  return seconds;
}

double PrefillSeconds(const Problem& problem, const StageChoice& choice) {
  return PrefillOf(problem, choice).seconds;
}

Hop HopBetween(const Problem& problem, int from, int to, int cut) {
  const StageCandidate& a = problem.stages[S(from)];
  const StageCandidate& b = problem.stages[S(to)];
  const ModelConfig& c = problem.model->config;
  const bool shared = c.layers[S(cut)].indexer == IndexerKind::kShared;
  const double row = (c.hidden_dim + (shared ? c.indexer.top_k : 0)) * 4.0;
  const double rows = problem.shape.max_tokens;
  Hop hop;
  double latency = kGrpcSeconds, rate = 2e9;
  hop.transport = "grpc";
  if (a.host != b.host) {
    const NetworkFacts net = problem.rig->Network(a.name.host, b.name.host);
    latency += net.round_trip_us / 2 * 1e-6;
    rate = std::min(rate, net.gb_per_s * 1e9);
  } else if (a.kind == DeviceKind::kCuda && b.kind == DeviceKind::kCuda && !a.narrow && !b.narrow) {
    hop.transport = "nccl";
    latency = kNcclSeconds;
    rate = std::min(a.link, b.link);
  } else if (!a.narrow && !b.narrow) {
    hop.transport = "shm";
    latency = kShmSeconds;
    rate = std::min({a.link, b.link, 10e9});
  } else {
    rate = std::min({rate, a.link, b.link});
  }
  hop.decode_seconds = latency + row / rate;
  hop.prefill_seconds = latency + rows * row / rate;
  return hop;
}

SpeedPrediction Predict(const Problem& problem, const std::vector<StageChoice>& stages) {
  SpeedPrediction speed;
  speed.decode_depth = std::min(kDepth, problem.context);
  const ModelConfig& config = problem.model->config;
  const auto add = [&](std::string resource, std::string work, double bytes, double rate,
                       double seconds) {
    speed.decode_terms.push_back(
        {std::move(resource), std::move(work), bytes, rate / 1e9, seconds * 1e3});
  };
  const double share = config.moe.num_experts > 0
                           ? static_cast<double>(config.moe.top_k) / config.moe.num_experts
                           : 0;
  struct Away {
    int layers = 0;
    double bytes = 0, seconds = 0;
  };
  std::map<int, Away> away;  // by experts worker
  double hops = 0, slowest = kStepSeconds;
  std::vector<double> streamed(problem.hosts.size());
  for (size_t i = 0; i < stages.size(); ++i) {
    const StageChoice& choice = stages[i];
    const StageCandidate& s = problem.stages[S(choice.candidate)];
    double seconds = DecodeSeconds(problem, choice);
    for (const ExpertsPart& part : choice.parts) {
      const ExpertsCandidate& e = problem.experts[S(part.worker)];
      Away& a = away[part.worker];
      const double bytes = ExpertsBytesOf(problem, part.layers) * share;
      const double waited = problem.remote_seconds[S(choice.candidate)][S(part.worker)].Of(
          part.layers.first, part.layers.last);
      const double hidden = s.kind == DeviceKind::kCuda ? 0 : waited - bytes / e.read;
      a.layers += part.layers.size();
      a.bytes += bytes;
      a.seconds += waited - hidden;
      seconds -= waited - hidden;
    }
    add(s.name.text(),
        absl::StrFormat("layers %d-%d, %d with their experts", choice.layers.first,
                        choice.layers.last - 1, std::max(choice.resident.size(), 0)),
        seconds * s.read, s.read, seconds);
    PrefillTime prefill = PrefillOf(problem, choice);
    if (i + 1 < stages.size()) {
      const Hop hop =
          HopBetween(problem, choice.candidate, stages[i + 1].candidate, choice.layers.last);
      hops += hop.decode_seconds;
      if (hop.prefill_seconds > slowest) {
        slowest = hop.prefill_seconds;
        speed.prefill_bound = absl::StrCat(s.name.text(), " ", hop.transport);
      }
    }
    streamed[S(s.host)] += prefill.streamed_bytes;
    if (prefill.seconds > slowest) {
      slowest = prefill.seconds;
      speed.prefill_bound = absl::StrCat(s.name.text(), " ", prefill.bound);
    }
  }
  for (const auto& [worker, a] : away) {
    const ExpertsCandidate& e = problem.experts[S(worker)];
    add(e.name.text() + " DRAM",
        absl::StrFormat("%d of %d experts of %d layers", config.moe.top_k, config.moe.num_experts,
                        a.layers),
        a.bytes, e.read, a.seconds);
  }
  if (stages.size() > 1) {
    add("links", absl::StrFormat("%d hops between stages", stages.size() - 1), 0, 0, hops);
  }
  add("coordinator", "control, sampling, the token's way back", 0, 0, kStepSeconds);
  const SpeedTerm* bound = &speed.decode_terms.front();
  for (const SpeedTerm& term : speed.decode_terms) {
    speed.decode_ms += term.ms;
    if (term.ms > bound->ms) bound = &term;
  }
  speed.decode_bound = bound->resource;
  speed.decode_tokens_per_s = 1e3 / speed.decode_ms;
  // Stages stream at once, from one DRAM.
  for (size_t h = 0; h < streamed.size(); ++h) {
    const double seconds = streamed[h] / problem.hosts[h].dram_read;
    if (seconds > slowest) {
      slowest = seconds;
      speed.prefill_bound = problem.rig->hosts[h].name + "/cpu DRAM";
    }
  }
  speed.prefill_tokens_per_s = problem.shape.max_tokens / slowest;
  return speed;
}

}  // namespace packtrain
