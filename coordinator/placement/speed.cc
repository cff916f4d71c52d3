#include "coordinator/placement/speed.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/model/buffers.h"
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
  const RunningSum& own = p.own_prefill[S(choice.candidate)];
  const RunningSum& experts = p.expert_prefill[S(choice.candidate)];
  // A GPU computes the experts in its host's RAM itself, if there are rows enough; their layers run
  // while they are copied.
  const bool streams =
      s.kind == DeviceKind::kCuda && p.shape.max_tokens >= StreamedExpertsRows(p.model->config.moe);
  double alone = own.Of(choice.layers.first, choice.layers.last), copied = 0, workers = 0;
  if (!choice.resident.empty()) alone += experts.Of(choice.resident.first, choice.resident.last);
  PrefillTime time;
  for (const ExpertsPart& part : choice.parts) {
    const int first = part.layers.first, last = part.layers.last;
    if (streams && p.experts[S(part.worker)].host == s.host) {
      copied += own.Of(first, last) + experts.Of(first, last);
      alone -= own.Of(first, last);
      time.streamed_bytes += p.expert_bytes[0].Of(first, last);
    } else {
      workers += p.worker_prefill[S(part.worker)].Of(first, last);
    }
  }
  // What the ring holds is there when the first of these layers begins.
  const double ahead =
      std::min(time.streamed_bytes, static_cast<double>(ExpertRingBytes(*p.model, p.shape)));
  const double copies = (time.streamed_bytes - ahead) / s.link;
  time.seconds = alone + workers + std::max(copied, copies);
  time.bound = copies > copied && copies > alone + workers ? "link"
               : workers > alone + copied                  ? "CPU experts"
                                                           : "compute";
  return time;
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
    seconds += problem.stages[s].head_seconds;
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
      Away& a = away[part.worker];
      const double waited = problem.remote_seconds[S(choice.candidate)][S(part.worker)].Of(
          part.layers.first, part.layers.last);
      a.layers += part.layers.size();
      a.bytes += ExpertsBytesOf(problem, part.layers) * share;
      a.seconds += waited;
      seconds -= waited;
    }
    add(s.name.text(),
        absl::StrFormat("layers %d-%d, %d with their experts", choice.layers.first,
                        choice.layers.last - 1, std::max(choice.resident.size(), 0)),
        0, 0, seconds);
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
        a.bytes, a.bytes / a.seconds, a.seconds);
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
  // Nothing hides the way of a step that only one stage works on.
  if (stages.size() == 1) slowest += kStepSeconds;
  speed.prefill_tokens_per_s = problem.shape.max_tokens / slowest;
  return speed;
}

}  // namespace packtrain
