// Against brute force: every subset of devices, every cut, every number of resident layers at
// either end of a stage.

#include "coordinator/placement/search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "coordinator/placement/planner.h"
#include "coordinator/placement/rates.h"
#include "coordinator/placement/speed.h"
#include "tests/support/placement_checks.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

class BruteForce {
 public:
  explicit BruteForce(const Problem& problem) : p_(problem) {}

  // Seconds of the best division, infinite if none fits.
  double Best() {
    best_ = INFINITY;
    Go(0, 0);
    return best_;
  }

 private:
  void Go(size_t device, int layer) {
    if (layer == p_.num_layers) {
      for (size_t d = device; d < p_.stages.size(); ++d) {
        if (p_.stages[d].required) return;
      }
      Weigh();
      return;
    }
    if (device == p_.stages.size()) return;
    if (!p_.stages[device].required) Go(device + 1, layer);
    for (int last = layer + 1; last <= p_.num_layers; ++last) {
      for (const StageChoice& choice : Choices(device, layer, last)) {
        chosen_.push_back(choice);
        Go(device + 1, last);
        chosen_.pop_back();
      }
    }
  }

  std::vector<StageChoice> Choices(size_t device, int first, int last) const {
    std::vector<StageChoice> choices;
    const int from = std::max(first, p_.first_moe);
    for (int resident = 0; resident <= std::max(last - from, 0); ++resident) {
      for (const bool front : {true, false}) {
        StageChoice c;
        c.candidate = static_cast<int>(device);
        c.layers = {first, last};
        c.resident = front ? LayerRange{from, from + resident} : LayerRange{last - resident, last};
        const LayerRange away =
            front ? LayerRange{from + resident, last} : LayerRange{from, last - resident};
        if (away.empty()) {
          choices.push_back(c);
          continue;
        }
        if (p_.stages[device].narrow) continue;
        for (size_t near = 0; near < p_.experts.size(); ++near) {
          // The first layers on one worker, the others on any other.
          for (int edge = away.first + 1; edge <= away.last; ++edge) {
            for (size_t behind = 0; behind < p_.experts.size(); ++behind) {
              if (edge < away.last && behind == near) continue;
              c.parts = {{static_cast<int>(near), {away.first, edge}}};
              if (edge < away.last) {
                c.parts.push_back({static_cast<int>(behind), {edge, away.last}});
              }
              choices.push_back(c);
              if (edge == away.last) break;
            }
          }
        }
      }
    }
    return choices;
  }

  void Weigh() {
    double seconds = 0;
    std::vector<uint64_t> host = ExpertsBaseNeed(p_);
    for (size_t i = 0; i < chosen_.size(); ++i) {
      const StageCandidate& s = p_.stages[S(chosen_[i].candidate)];
      const StageNeed need = NeedOf(p_, chosen_[i]);
      if (need.device > s.capacity) return;
      for (size_t h = 0; h < host.size(); ++h) host[h] += need.host[h];
      seconds += DecodeSeconds(p_, chosen_[i]);
      if (i > 0) {
        seconds +=
            HopBetween(p_, chosen_[i - 1].candidate, chosen_[i].candidate, chosen_[i].layers.first)
                .Seconds(1);
      }
    }
    for (size_t h = 0; h < host.size(); ++h) {
      if (host[h] > p_.hosts[h].capacity) return;
    }
    best_ = std::min(best_, seconds);
  }

  const Problem& p_;
  std::vector<StageChoice> chosen_;
  double best_ = INFINITY;
};

TEST(DivisionSearchTest, FindsWhatBruteForceFindsOnSmallRigs) {
  TestRng rng(7);
  int solved = 0, refused = 0, cut = 0;
  for (int i = 0; i < 200; ++i) {
    SCOPED_TRACE(testing::Message() << "rig " << i);
    // Two hosts multiply the choices; they get fewer layers.
    const int hosts = Pick(&rng, 1, 2);
    const ModelFacts model = RandomModel(&rng, hosts == 1 ? 12 : 6);
    Rig rig = RandomRig(&rng, model, hosts, hosts == 1 ? 3 : 2);
    if (rig.hosts[0].gpus.empty()) rig.hosts[0].gpus.push_back(TestGpu(0, 4, 1000, 12));
    DeploymentWish wish;
    wish.name = "model";
    wish.model = &model;
    wish.context = 4096;
    wish.kv_cache = KvCacheType::kQ8_0;
    wish.max_tokens = 256;
    const Problem problem = *BuildProblem(rig, wish, {}, 256);
    const double best = BruteForce(problem).Best();
    const std::optional<SearchResult> found = DivisionSearch(problem).Find({});
    ASSERT_EQ(found.has_value(), std::isfinite(best));
    if (!found) {
      ++refused;
      continue;
    }
    ++solved;
    cut += found->stages.size() > 1 ? 1 : 0;
    EXPECT_GE(found->seconds, best * (1 - 1e-9));
    EXPECT_LE(found->seconds, best * (1 + 1e-6));
    // What the whole planner chooses, balance and all, stays within one per cent.
    const absl::StatusOr<std::optional<Solution>> solution = Solve(rig, wish, {});
    ASSERT_TRUE(solution.ok() && solution->has_value());
    const double ms = Predict((*solution)->problem, (*solution)->stages).decode_ms;
    EXPECT_LE(ms, (best + kStepSeconds) * 1e3 * 1.01);
  }
  std::printf("%d solved (%d of them cut), %d refused\n", solved, cut, refused);
  EXPECT_GT(solved, 80);
  EXPECT_GT(cut, 30);
  EXPECT_GT(refused, 20);
}

TEST(DivisionSearchTest, LeastRamIsNeverAboveThatOfTheFastest) {
  TestRng rng(11);
  for (int i = 0; i < 30; ++i) {
    const ModelFacts model = RandomModel(&rng, 12);
    const Rig rig = RandomRig(&rng, model, 1, 3);
    DeploymentWish wish;
    wish.name = "model";
    wish.model = &model;
    wish.context = 4096;
    const Problem problem = *BuildProblem(rig, wish, {}, 128);
    DivisionSearch search(problem);
    const std::optional<SearchResult> fastest = search.Find({});
    const std::optional<SearchResult> least = search.FindLeastRam();
    if (fastest) {
      ASSERT_TRUE(least.has_value());
      EXPECT_LE(least->host[0], fastest->host[0]);
    } else if (least) {
      EXPECT_GT(least->host[0], problem.hosts[0].capacity);
    }
  }
}

}  // namespace
}  // namespace packtrain
