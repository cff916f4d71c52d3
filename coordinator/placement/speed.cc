#include "coordinator/placement/speed.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/model/buffers.h"
#include "common/model/snapshots.h"
#include "coordinator/placement/layer_times.h"
#include "coordinator/placement/rates.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

// Seconds of one ubatch in a range of layers, by what computes it.
struct UbatchTimes {
  std::function<double(int first, int last)> own, experts;  // of the stage: all else; the experts
  std::function<double(int worker, int first, int last)> workers;
};

struct PrefillTime {
  double seconds = 0;
  double streamed_bytes = 0;      // from RAM to the device
  std::map<int, double> workers;  // seconds, by experts worker
  const char* bound = "";
};

PrefillTime Prefill(const Problem& p, const StageChoice& choice, int rows,
                    const UbatchTimes& times) {
  const StageCandidate& s = p.stages[S(choice.candidate)];
  // A GPU computes the experts in its host's RAM itself, if there are rows enough; their layers run
  // while they are copied.
  const bool streams = s.kind == DeviceKind::kCuda && p.shape.Streams(rows);
  double alone = times.own(choice.layers.first, choice.layers.last), copied = 0, workers = 0;
  if (!choice.resident.empty()) alone += times.experts(choice.resident.first, choice.resident.last);
  PrefillTime time;
  for (const ExpertsPart& part : choice.parts) {
    const int first = part.layers.first, last = part.layers.last;
    if (streams && p.experts[S(part.worker)].host == s.host) {
      copied += times.own(first, last) + times.experts(first, last);
      alone -= times.own(first, last);
      time.streamed_bytes += p.expert_bytes[0].Of(first, last);
    } else {
      const double seconds = times.workers(part.worker, first, last);
      time.workers[part.worker] += seconds;
      workers += seconds;
    }
  }
  // Before that as much is copied as the ring holds.
  const double ahead = std::min(alone, p.ring_bytes / s.link);
  const double copies = std::max(time.streamed_bytes / s.link - ahead, 0.0);
  time.seconds = alone + workers + std::max(copied, copies) * kStreamedWaits;
  time.bound = copies > copied && copies > alone + workers ? "link"
               : workers > alone + copied                  ? "CPU experts"
                                                           : "compute";
  return time;
}

// Of a full ubatch, from sums that are there: the search asks for every range.
PrefillTime FullUbatch(const Problem& p, const StageChoice& choice) {
  const size_t c = S(choice.candidate);
  return Prefill(p, choice, p.shape.max_tokens,
                 {.own = [&](int first, int last) { return p.own_prefill[c].Of(first, last); },
                  .experts = [&](int a, int b) { return p.expert_prefill[c].Of(a, b); },
                  .workers = [&](int w, int a, int b) { return p.worker_prefill[S(w)].Of(a, b); }});
}

PrefillTime Ubatch(const Problem& p, const StageChoice& choice, const PromptChunk& chunk) {
  const StageCandidate& s = p.stages[S(choice.candidate)];
  // The last token of a prompt, where recurrent state is kept in front of it.
  if (chunk.rows == 1) {
    PrefillTime time;
    time.seconds = DecodeSeconds(p, choice);
    time.bound = "compute";
    return time;
  }
  const auto sum = [](int first, int last, auto seconds) {
    double total = 0;
    for (int l = first; l < last; ++l) total += seconds(l);
    return total;
  };
  const auto experts = [&](const ExpertTimes& times, int first, int last) {
    return sum(first, last, [&](int l) { return ExpertsPrefillSeconds(p, times, l, chunk.rows); });
  };
  return Prefill(
      p, choice, chunk.rows,
      {.own =
           [&](int first, int last) {
             return sum(first, last, [&](int l) { return OwnPrefillSeconds(p, s, l, chunk); });
           },
       .experts = [&](int first, int last) { return experts(s.experts, first, last); },
       .workers = [&](int worker, int first,
                      int last) { return experts(p.experts[S(worker)].experts, first, last); }});
}

// A prompt alone in the pipeline: ubatch after ubatch, each through all stages, the next one
// behind it as soon as a stage is free.
class PromptRun {
 public:
  PromptRun(const Problem& problem, const std::vector<StageChoice>& stages, int prompt)
      : p_(problem), stages_(stages), free_(stages.size()) {
    for (int done = 0; done < prompt;) {
      const int end = EndOfUbatch(done, prompt);
      Run({.rows = end - done, .depth = done});
      done = end;
    }
    seconds_ = free_.back() + p_.stages[S(stages_.back().candidate)].head_seconds;
    // What several stages use at once.
    for (const auto& [resource, busy] : shared_) seconds_ = std::max(seconds_, busy);
  }

  double seconds() const { return seconds_; }
  // What is busy for longest.
  std::string bound() const {
    const std::pair<const std::string, double>* longest = nullptr;
    for (const auto* busy : {&busy_, &shared_}) {
      for (const auto& item : *busy) {
        if (longest == nullptr || item.second > longest->second) longest = &item;
      }
    }
    return longest == nullptr ? "" : longest->first;
  }

 private:
  // As the scheduler cuts prompts: also where recurrent state is to be kept.
  int EndOfUbatch(int begin, int prompt) const {
    int end = std::min(begin + p_.shape.max_tokens, prompt);
    if (p_.shape.num_snapshots == 0) return end;
    end = std::min(end, (begin / kSnapshotInterval + 1) * kSnapshotInterval);
    return begin < prompt - 1 ? std::min(end, prompt - 1) : end;
  }

  // Stages of one card compute in turns.
  bool SharesItsCard(const StageCandidate& s) const {
    return s.kind == DeviceKind::kCuda &&
           std::count_if(stages_.begin(), stages_.end(), [&](const StageChoice& c) {
             return p_.stages[S(c.candidate)].name == s.name;
           }) > 1;
  }

  void Run(const PromptChunk& chunk) {
    double at = 0;
    for (size_t i = 0; i < stages_.size(); ++i) {
      const StageChoice& choice = stages_[i];
      const StageCandidate& s = p_.stages[S(choice.candidate)];
      const PrefillTime time = Ubatch(p_, choice, chunk);
      at = std::max(at, free_[i]) + time.seconds;
      free_[i] = at;
      busy_[absl::StrCat(s.name.text(), " ", time.bound)] += time.seconds;
      for (const auto& [worker, seconds] : time.workers) {
        shared_[p_.experts[S(worker)].name.text() + " experts"] += seconds;
      }
      if (time.streamed_bytes > 0) {
        shared_[p_.rig->hosts[S(s.host)].name + "/cpu DRAM"] +=
            time.streamed_bytes / p_.hosts[S(s.host)].dram_read;
      }
      double seconds = 0;
      if (i + 1 < stages_.size()) {
        const Hop hop =
            HopBetween(p_, choice.candidate, stages_[i + 1].candidate, choice.layers.last);
        seconds = hop.Seconds(chunk.rows);
        at += seconds;
        busy_[absl::StrCat(s.name.text(), " ", hop.transport)] += seconds;
      }
      // Its stages compute in turns and wait for each other's hops.
      if (SharesItsCard(s)) shared_[s.name.text() + " compute"] += time.seconds + seconds;
    }
  }

  const Problem& p_;
  const std::vector<StageChoice>& stages_;
  std::vector<double> free_;                     // by stage: when it has done all so far
  std::map<std::string, double> busy_, shared_;  // seconds
  double seconds_ = 0;
};

double HopSeconds(const Problem& problem, const std::vector<StageChoice>& stages) {
  double seconds = 0;
  for (size_t i = 0; i + 1 < stages.size(); ++i) {
    seconds +=
        HopBetween(problem, stages[i].candidate, stages[i + 1].candidate, stages[i].layers.last)
            .Seconds(1);
  }
  return seconds;
}

// Where the time of a decode step goes, at the depth that plans are made for.
std::vector<SpeedTerm> DecodeTerms(const Problem& problem, const std::vector<StageChoice>& stages) {
  std::vector<SpeedTerm> terms;
  const ModelConfig& config = problem.model->config;
  const auto add = [&](std::string resource, std::string work, double bytes, double seconds) {
    const double rate = bytes > 0 ? bytes / seconds / 1e9 : 0;
    terms.push_back({std::move(resource), std::move(work), bytes, rate, seconds * 1e3});
  };
  const double share = config.moe.num_experts > 0
                           ? static_cast<double>(config.moe.top_k) / config.moe.num_experts
                           : 0;
  struct Away {
    int layers = 0;
    double bytes = 0, seconds = 0;
  };
  std::map<int, Away> away;  // by experts worker
  for (const StageChoice& choice : stages) {
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
    add(problem.stages[S(choice.candidate)].name.text(),
        absl::StrFormat("layers %d-%d, %d with their experts", choice.layers.first,
                        choice.layers.last - 1, std::max(choice.resident.size(), 0)),
        0, seconds);
  }
  for (const auto& [worker, a] : away) {
    add(problem.experts[S(worker)].name.text() + " DRAM",
        absl::StrFormat("%d of %d experts of %d layers", config.moe.top_k, config.moe.num_experts,
                        a.layers),
        a.bytes, a.seconds);
  }
  if (stages.size() > 1) {
    add("links", absl::StrFormat("%d hops between stages", stages.size() - 1), 0,
        HopSeconds(problem, stages));
  }
  add("coordinator", "control, sampling, the token's way back", 0, kStepSeconds);
  return terms;
}

// Of a decode step with so many positions in the cache.
double StepSeconds(const Problem& problem, const std::vector<StageChoice>& stages, int depth) {
  const int known = std::min(kDepth, problem.context);
  double seconds = HopSeconds(problem, stages) + kStepSeconds;
  for (const StageChoice& choice : stages) {
    const StageCandidate& s = problem.stages[S(choice.candidate)];
    seconds += DecodeSeconds(problem, choice);
    for (int l = choice.layers.first; l < choice.layers.last && depth != known; ++l) {
      seconds += OwnDecodeSeconds(problem, s, l, depth) - OwnDecodeSeconds(problem, s, l, known);
    }
  }
  return seconds;
}

}  // namespace

double DecodeSeconds(const Problem& problem, const StageChoice& choice) {
  const size_t s = S(choice.candidate);
  double seconds = problem.stages[s].step_seconds +
                   problem.own_seconds[s].Of(choice.layers.first, choice.layers.last);
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
  return FullUbatch(problem, choice).seconds;
}

double PromptSeconds(const Problem& problem, const std::vector<StageChoice>& stages, int prompt) {
  return PromptRun(problem, stages, prompt).seconds() + kPromptSeconds + prompt * kPromptRowSeconds;
}

int PlannedPrompt(const Problem& problem) { return std::min(kPrompt, problem.context); }

double RequestSeconds(const Problem& problem, const std::vector<StageChoice>& stages) {
  return PromptSeconds(problem, stages, PlannedPrompt(problem)) +
         kGenerated * StepSeconds(problem, stages, std::min(kDepth, problem.context));
}

Hop HopBetween(const Problem& problem, int from, int to, int cut) {
  const StageCandidate& a = problem.stages[S(from)];
  const StageCandidate& b = problem.stages[S(to)];
  const ModelConfig& c = problem.model->config;
  const bool shared = c.layers[S(cut)].indexer == IndexerKind::kShared;
  const double row = (c.hidden_dim + (shared ? c.indexer.top_k : 0)) * 4.0;
  Hop hop;
  double latency = kGrpcSeconds, rate = kGrpcRate;
  hop.transport = "grpc";
  if (a.host != b.host) {
    const NetworkFacts net = problem.rig->Network(a.name.host, b.name.host);
    latency += net.round_trip_us / 2 * 1e-6;
    rate = std::min(rate, net.gb_per_s * 1e9);
  } else if (a.kind == DeviceKind::kCuda && a.name == b.name) {  // NCCL wants a card each
    hop.transport = "shm";
    latency = kShmSeconds + kTurnSeconds;
    rate = kShmRate;
  } else if (a.kind == DeviceKind::kCuda && b.kind == DeviceKind::kCuda && !a.narrow && !b.narrow) {
    hop.transport = "shm, nccl";
    latency = kShmSeconds;
    rate = std::min(a.link, b.link);
  } else if (!a.narrow && !b.narrow) {
    hop.transport = "shm";
    latency = kShmSeconds;
    rate = std::min({a.link, b.link, kShmRate});
  } else {
    rate = std::min({rate, a.link, b.link});
  }
  hop.latency = latency;
  hop.row_seconds = row / rate;
  return hop;
}

SpeedPrediction Predict(const Problem& problem, const std::vector<StageChoice>& stages) {
  SpeedPrediction speed;
  speed.decode_depth = std::min(kDepth, problem.context);
  speed.decode_terms = DecodeTerms(problem, stages);
  const SpeedTerm* bound = &speed.decode_terms.front();
  for (const SpeedTerm& term : speed.decode_terms) {
    speed.decode_ms += term.ms;
    if (term.ms > bound->ms) bound = &term;
  }
  speed.decode_bound = bound->resource;
  speed.decode_tokens_per_s = 1e3 / speed.decode_ms;
  for (const int depth : problem.wish->depths) {
    if (depth > problem.context) continue;
    speed.decode.push_back({depth, 1 / StepSeconds(problem, stages, depth)});
  }
  speed.prompt = PlannedPrompt(problem);
  speed.prefill_bound = PromptRun(problem, stages, speed.prompt).bound();
  speed.prefill_tokens_per_s = speed.prompt / PromptSeconds(problem, stages, speed.prompt);
  for (const int prompt : problem.wish->prompts) {
    if (prompt > problem.context) continue;
    speed.prefill.push_back({prompt, prompt / PromptSeconds(problem, stages, prompt)});
  }
  return speed;
}

}  // namespace packtrain
