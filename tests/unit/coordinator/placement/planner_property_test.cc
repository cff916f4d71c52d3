// Random rigs, models and contexts: every plan is whole, keeps its pins, fits by a recount, and is
// the same when made again; every refusal is true.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "coordinator/placement/planner.h"
#include "coordinator/placement/report.h"
#include "tests/support/placement_checks.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

DeploymentWish RandomWish(TestRng* rng, const ModelFacts* model) {
  DeploymentWish wish;
  wish.name = "model";
  wish.model = model;
  wish.context = std::min(1 << Pick(rng, 10, 18), model->config.context_length);
  wish.kv_cache = static_cast<KvCacheType>(Pick(rng, 0, 3));
  wish.num_slots = Pick(rng, 1, 16);
  wish.mtp = model->config.num_mtp_layers > 0 && Pick(rng, 0, 1) == 1;
  return wish;
}

// A pipeline of CPU workers, as a user without GPUs lists it.
void ListCpuWorkers(TestRng* rng, const Rig& rig, DeploymentWish* wish) {
  WorkerWish worker;
  worker.device = {rig.hosts[0].name, "cpu"};
  worker.role = WishedRole::kStage;
  const int stages = Pick(rng, 1, std::min(3, wish->model->config.num_layers));
  wish->workers.assign(S(stages), worker);
  worker.role = WishedRole::kExperts;
  const bool moe = wish->model->weights.layers.back().experts > 0;
  if (moe && Pick(rng, 0, 1) == 1) wish->workers.push_back(worker);
}

// Lists all GPUs and the first host's CPU, with some of the pins a user may set.
void PinSome(TestRng* rng, const Rig& rig, DeploymentWish* wish) {
  const int layers = wish->model->config.num_layers;
  for (const HostFacts& host : rig.hosts) {
    for (const GpuFacts& gpu : host.gpus) {
      WorkerWish w;
      w.device = {host.name, "cuda:" + std::to_string(gpu.index)};
      wish->workers.push_back(w);
    }
  }
  if (wish->workers.empty()) return;
  WorkerWish& first = wish->workers.front();
  const int cut = wish->workers.size() == 1 ? layers : Pick(rng, 1, layers);
  if (Pick(rng, 0, 1) == 0) first.layers = LayerRange{0, cut};
  if (Pick(rng, 0, 2) == 0) {
    const int from = Pick(rng, 0, cut - 1);
    first.resident_experts = LayerRange{from, Pick(rng, from, cut)};
  }
  WorkerWish cpu;
  cpu.device = {rig.hosts[0].name, "cpu"};
  cpu.role = WishedRole::kExperts;
  if (wish->model->weights.layers.back().experts > 0) wish->workers.push_back(cpu);
}

// The least RAM that any division of an unpinned model over one host's GPUs needs, by plain
// recursion over (card, layer); infinite if the cards do not hold what cannot leave them.
class LeastRam {
 public:
  LeastRam(const Problem& problem) : p_(problem), memo_(problem.stages.size() + 1) {
    for (std::vector<double>& row : memo_) row.assign(S(problem.num_layers) + 1, -1);
  }
  double From(size_t card, int layer) {
    if (layer == p_.num_layers) return 0;
    if (card == p_.stages.size()) return std::numeric_limits<double>::infinity();
    double& memo = memo_[card][S(layer)];
    if (memo >= 0) return memo;
    double best = From(card + 1, layer);
    for (int last = layer + 1; last <= p_.num_layers; ++last) {
      if (last == p_.model->config.num_layers && last < p_.num_layers) continue;
      for (const bool front : {true, false}) {
        for (int resident = 0; resident <= last - layer; ++resident) {
          best = std::min(best, Ram(card, layer, last, front, resident));
        }
      }
    }
    return memo = best;
  }

 private:
  double Ram(size_t card, int first, int last, bool front, int resident) {
    const LayerRange in =
        front ? LayerRange{first, first + resident} : LayerRange{last - resident, last};
    uint64_t away = 0;
    for (int l = first; l < last; ++l) {
      if (l < in.first || l >= in.last) away += p_.model->weights.layers[S(l)].experts;
    }
    if (away > 0 && (p_.stages[card].narrow || p_.experts.empty())) {
      return std::numeric_limits<double>::infinity();
    }
    const bool sends = last < p_.num_layers;
    const bool asks = away > 0;
    const StageDuties duties = {.device = DeviceKind::kCuda,
                                .embeds = first == 0,
                                .has_head = !sends,
                                .receives = first > 0,
                                .sends = sends,
                                .asks_experts = asks,
                                .nccl = p_.nccl};
    if (StageBill(*p_.model, p_.shape, duties, first, last, in.first, in.last).total() >
        p_.stages[card].capacity) {
      return std::numeric_limits<double>::infinity();
    }
    return static_cast<double>(away + StageHostBill(*p_.model, p_.shape, duties).total()) +
           From(card + 1, last);
  }

  const Problem& p_;
  std::vector<std::vector<double>> memo_;
};

// With GPUs on a single host and nothing pinned.
bool TrulyImpossible(const Rig& rig, const DeploymentWish& wish) {
  Problem problem = *BuildProblem(rig, wish, {}, 64);
  const uint64_t base = ExpertsBaseNeed(problem)[0];
  const double with = LeastRam(problem).From(0, 0) + static_cast<double>(base);
  problem.experts.clear();
  const double without = LeastRam(problem).From(0, 0);
  const double capacity = static_cast<double>(problem.hosts[0].capacity);
  return with > capacity && without > capacity;
}

DeploymentWish Remedied(const DeploymentWish& wish, const Remedy& remedy, ModelFacts* model,
                        Rig* rig) {
  DeploymentWish other = wish;
  if (remedy.context) other.context = *remedy.context;
  if (remedy.kv_cache) other.kv_cache = *remedy.kv_cache;
  if (remedy.mtp) other.mtp = *remedy.mtp;
  if (remedy.num_slots) other.num_slots = *remedy.num_slots;
  if (remedy.experts_share) {
    *model = *wish.model;
    for (LayerWeightBytes& l : model->weights.layers) {
      l.experts = l.experts * static_cast<uint64_t>(std::lround(*remedy.experts_share * 100)) / 100;
    }
    other.model = model;
  }
  for (HostFacts& host : rig->hosts) host.memory.available_bytes += remedy.more_ram.value_or(0);
  for (WorkerWish& w : other.workers) {
    if (!remedy.without_pins) break;
    w.layers.reset();
    w.resident_experts.reset();
    w.experts.clear();
  }
  return other;
}

TEST(PlannerPropertyTest, EveryPlanIsWholeAndFitsAndEveryRefusalIsTrue) {
  TestRng rng(20261123);
  int planned = 0, refused = 0, proven = 0, remedies = 0, pinned = 0, wrong = 0;
  for (int i = 0; i < 500; ++i) {
    SCOPED_TRACE(testing::Message() << "rig " << i);
    const ModelFacts model = RandomModel(&rng, i % 10 == 0 ? 60 : 24);
    PlanRequest request;
    request.rig = RandomRig(&rng, model, 2, 4);
    DeploymentWish wish = RandomWish(&rng, &model);
    if (i % 3 == 0) PinSome(&rng, request.rig, &wish);
    if (i % 6 == 1) ListCpuWorkers(&rng, request.rig, &wish);
    pinned += wish.workers.empty() ? 0 : 1;
    request.deployments.push_back(wish);
    const absl::StatusOr<Placement> placement = PlanPlacement(request);
    if (placement.ok()) {
      ++planned;
      ASSERT_EQ(PlanFault(request, *placement), "") << PlacementTable(*placement);
      const absl::StatusOr<Placement> again = PlanPlacement(request);
      ASSERT_TRUE(again.ok());
      ASSERT_EQ(PlacementJson(*placement), PlacementJson(*again));
      continue;
    }
    if (placement.status().code() == absl::StatusCode::kInvalidArgument) {
      ++wrong;  // e.g. a pin that names experts of a dense layer
      continue;
    }
    ++refused;
    ASSERT_EQ(placement.status().code(), absl::StatusCode::kResourceExhausted);
    if (wish.workers.empty() && request.rig.hosts.size() == 1 &&
        !request.rig.hosts[0].gpus.empty()) {
      ++proven;
      ASSERT_TRUE(TrulyImpossible(request.rig, wish)) << placement.status();
    }
    for (const Remedy& remedy : Diagnose(request.rig, wish, {}).remedies) {
      ++remedies;
      Rig rig = request.rig;
      ModelFacts smaller;
      const DeploymentWish better = Remedied(wish, remedy, &smaller, &rig);
      PlanRequest retry = {rig, {better}};
      const absl::StatusOr<Placement> fixed = PlanPlacement(retry);
      ASSERT_TRUE(fixed.ok()) << remedy.text << ": " << fixed.status();
      ASSERT_EQ(PlanFault(retry, *fixed), "");
    }
  }
  std::printf(
      "%d planned, %d refused (%d proven impossible, %d remedies tried), %d pinned, %d wrong\n",
      planned, refused, proven, remedies, pinned, wrong);
  EXPECT_GT(planned, 150);
  EXPECT_GT(refused, 50);
  EXPECT_GT(proven, 10);
  EXPECT_GT(remedies, 50);
  EXPECT_LT(wrong, 25);
}

}  // namespace
}  // namespace packtrain
