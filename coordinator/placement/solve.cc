// The choice for one deployment: ubatch length, division, balance.

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/placement/planner.h"
#include "coordinator/placement/search.h"
#include "coordinator/placement/speed.h"

namespace packtrain {
namespace {

// Long ubatches amortise the streaming of experts in prefill, but their buffers cost room for
// resident experts, and so decode. The length is taken that serves a whole request soonest, if it
// costs decode no more than the first of these; one that costs more must save a quarter of the
// request's time. Very long ones must speed the prompt up: they take memory from the KV cache, and
// others wait for them.
constexpr double kUbatchTolerance = 1.025;
constexpr double kWorthDecode = 0.75;
constexpr int kManyRows = 2048;
constexpr double kWorthRows = 0.95;
// Among divisions this close to the fastest decode, the one with the shortest longest stage.
constexpr double kBalanceTolerance = 1.005;
constexpr int kBalanceSteps = 10;
constexpr int kGpuUbatches[] = {8192, 4096, 2048, 1024, 512, 256, 128, 64};
constexpr int kCpuUbatches[] = {512, 256, 128, 64};

size_t S(int value) { return static_cast<size_t>(value); }

// The problem without experts workers: everything resident, and their buffers saved. nullopt if
// that is not allowed or cannot be.
std::optional<Problem> WithoutWorkers(const Problem& problem) {
  double capacity = 0;
  for (const StageCandidate& s : problem.stages) {
    if (s.experts_elsewhere) return std::nullopt;
    capacity += static_cast<double>(s.capacity);
  }
  for (const ExpertsCandidate& e : problem.experts) {
    if (!e.pinned.empty()) return std::nullopt;
  }
  if (problem.experts.empty() || problem.expert_bytes[0].Of(0, problem.num_layers) > capacity) {
    return std::nullopt;
  }
  Problem without = problem;
  without.experts.clear();
  for (std::vector<RunningSum>& remote : without.remote_seconds) remote.clear();
  return without;
}

// Lowers the longest stage of prefill as far as decode loses next to nothing.
std::vector<StageChoice> Balance(const Problem& problem, const SearchResult& best) {
  std::vector<StageChoice> stages = best.stages;
  if (stages.size() < 2) return stages;
  const auto longest = [&] {
    double seconds = 0;
    for (const StageChoice& s : stages) seconds = std::max(seconds, PrefillSeconds(problem, s));
    return seconds;
  };
  DivisionSearch search(problem);
  double high = longest(), low = 0;
  for (int i = 0; i < kBalanceSteps; ++i) {
    const double middle = (low + high) / 2;
    const std::optional<SearchResult> found = search.Find({.stage_prefill_seconds = middle});
    if (found && found->seconds <= best.seconds * kBalanceTolerance) {
      stages = found->stages;
      high = longest();
    } else {
      low = middle;
    }
  }
  return stages;
}

int CountExpertsRanges(const std::vector<StageChoice>& stages) {
  int ranges = 0;
  int end = -1, worker = -1;
  for (const StageChoice& s : stages) {
    for (const ExpertsPart& part : s.parts) {
      ranges += part.layers.first == end && part.worker == worker ? 0 : 1;
      end = part.layers.last;
      worker = part.worker;
    }
  }
  return ranges;
}

// The same stage with its resident layers at the other end; nullopt if that is not possible.
std::optional<StageChoice> Mirror(const Problem& problem, const StageChoice& choice) {
  if (choice.parts.size() != 1 || choice.resident.empty() ||
      problem.stages[S(choice.candidate)].resident) {
    return std::nullopt;
  }
  StageChoice other = choice;
  const LayerRange& away = choice.parts[0].layers;
  if (away.first == choice.resident.last) {
    other.parts[0].layers = {choice.resident.first, choice.resident.first + away.size()};
    other.resident = {other.parts[0].layers.last, away.last};
  } else {
    other.resident = {away.first, away.first + choice.resident.size()};
    other.parts[0].layers = {other.resident.last, choice.resident.last};
  }
  for (int l = away.first; l < away.last; ++l) {
    if (problem.forced[S(l)] >= 0) return std::nullopt;
  }
  return other;
}

// Resident experts may sit at either end of a stage; ends are chosen so that the experts workers
// hold few ranges, where that costs nothing.
void JoinExpertsRanges(const Problem& problem, std::vector<StageChoice>* stages) {
  const auto host_need = [&](const StageChoice& s) { return NeedOf(problem, s).host; };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < stages->size(); ++i) {
      const std::optional<StageChoice> other = Mirror(problem, (*stages)[i]);
      if (!other) continue;
      const StageCandidate& s = problem.stages[S(other->candidate)];
      std::vector<StageChoice> joined = *stages;
      joined[i] = *other;
      if (CountExpertsRanges(joined) < CountExpertsRanges(*stages) &&
          DeviceNeedOf(problem, *other) <= s.capacity &&
          host_need(*other) <= host_need((*stages)[i]) &&
          DecodeSeconds(problem, *other) <= DecodeSeconds(problem, (*stages)[i]) * (1 + 1e-9)) {
        *stages = std::move(joined);
        changed = true;
      }
    }
  }
}

struct Found {
  Problem problem;
  SearchResult result;
};

// The division that decodes fastest with ubatches of this length.
absl::StatusOr<std::optional<Found>> FindDivision(const Rig& rig, const DeploymentWish& wish,
                                                  const Taken& taken, int length) {
  ASSIGN_OR_RETURN(Problem problem, BuildProblem(rig, wish, taken, length));
  std::optional<SearchResult> result = DivisionSearch(problem).Find({});
  if (std::optional<Problem> without = WithoutWorkers(problem)) {
    std::optional<SearchResult> resident = DivisionSearch(*without).Find({});
    if (resident && (!result || resident->seconds <= result->seconds)) {
      problem = *std::move(without);
      result = std::move(resident);
    }
  }
  if (!result) return std::nullopt;
  return Found{std::move(problem), *std::move(result)};
}

// The best with ubatches of one length.
struct Choice {
  Solution solution = {};
  double request_seconds = 0, prompt_seconds = 0;
  bool keeps_decode = false;
};

// Whether `a` is better than `b`, which has shorter ubatches.
bool IsBetter(const Choice& a, const Choice& b) {
  if (a.solution.problem.shape.max_tokens > kManyRows &&
      a.prompt_seconds > b.prompt_seconds * kWorthRows) {
    return false;
  }
  if (a.keeps_decode == b.keeps_decode) return a.request_seconds < b.request_seconds;
  return a.keeps_decode ? b.request_seconds >= a.request_seconds * kWorthDecode
                        : a.request_seconds < b.request_seconds * kWorthDecode;
}

}  // namespace

absl::StatusOr<std::optional<Solution>> Solve(const Rig& rig, const DeploymentWish& wish,
                                              const Taken& taken) {
  std::vector<int> lengths = {wish.max_tokens};
  if (wish.max_tokens == 0) {
    ASSIGN_OR_RETURN(const Problem any, BuildProblem(rig, wish, taken, 64));
    const bool cuda =
        std::any_of(any.stages.begin(), any.stages.end(),
                    [](const StageCandidate& s) { return s.kind == DeviceKind::kCuda; });
    lengths.assign(std::begin(kCpuUbatches), std::end(kCpuUbatches));
    if (cuda) lengths.assign(std::begin(kGpuUbatches), std::end(kGpuUbatches));
  }
  std::optional<Choice> best;
  // The shortest leaves most room and so decodes fastest.
  std::reverse(lengths.begin(), lengths.end());
  double fastest = 0;
  for (const int length : lengths) {
    ASSIGN_OR_RETURN(std::optional<Found> found, FindDivision(rig, wish, taken, length));
    if (!found) continue;
    std::vector<StageChoice> stages = Balance(found->problem, found->result);
    Choice choice;
    choice.request_seconds = RequestSeconds(found->problem, stages);
    choice.prompt_seconds = PromptSeconds(found->problem, stages, PlannedPrompt(found->problem));
    if (!best) fastest = found->result.seconds;
    choice.keeps_decode = found->result.seconds <= fastest * kUbatchTolerance;
    choice.solution = {std::move(found->problem), std::move(stages)};
    if (!best || IsBetter(choice, *best)) best = std::move(choice);
  }
  if (!best) return std::nullopt;
  JoinExpertsRanges(best->solution.problem, &best->solution.stages);
  return std::move(best->solution);
}

bool Fits(const Rig& rig, const DeploymentWish& wish, const Taken& taken) {
  const int length = wish.max_tokens > 0 ? wish.max_tokens : 64;
  absl::StatusOr<Problem> problem = BuildProblem(rig, wish, taken, length);
  if (!problem.ok()) return false;
  if (DivisionSearch(*problem).Find({})) return true;
  const std::optional<Problem> without = WithoutWorkers(*problem);
  return without && DivisionSearch(*without).Find({});
}

}  // namespace packtrain
