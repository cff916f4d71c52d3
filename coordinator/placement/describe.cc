#include "coordinator/placement/describe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/placement/speed.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

void AddNotes(const Solution& solution, DeploymentPlacement* placed) {
  const Problem& p = solution.problem;
  for (const HostFacts& host : p.rig->hosts) {
    if (!host.dram_read.empty()) continue;
    placed->notes.push_back(absl::StrCat("nobody has measured ", host.name,
                                         ": speeds are assumed; packtrain doctor measures"));
  }
  for (size_t i = 1; i < solution.stages.size(); ++i) {
    const int cut = solution.stages[i].layers.first;
    if (p.model->config.layers[S(cut)].indexer == IndexerKind::kShared) {
      placed->notes.push_back(absl::StrFormat(
          "the cut in front of layer %d carries the sparse attention's choice: %d more bytes a "
          "token",
          cut, p.model->config.indexer.top_k * 4));
    }
  }
  for (const StageChoice& choice : solution.stages) {
    const StageCandidate& s = p.stages[S(choice.candidate)];
    if (s.narrow && !choice.parts.empty()) {
      placed->notes.push_back(
          absl::StrCat(s.name.text(), " has a slow link and waits for experts over it, as pinned"));
    }
  }
}

}  // namespace

DeploymentPlacement DescribeSolution(const Solution& solution) {
  const Problem& p = solution.problem;
  DeploymentPlacement placed;
  placed.name = p.wish->name;
  placed.path = p.wish->path;
  placed.sidecar = p.wish->sidecar;
  placed.shape = p.shape;
  placed.context = p.context;
  placed.mtp = p.wish->mtp;
  placed.num_layers = p.num_layers;
  std::vector<int> worker_of(p.experts.size(), -1);
  for (size_t e = 0; e < p.experts.size(); ++e) {
    const bool used =
        std::any_of(solution.stages.begin(), solution.stages.end(), [&](const StageChoice& c) {
          return std::any_of(c.parts.begin(), c.parts.end(),
                             [&](const ExpertsPart& part) { return S(part.worker) == e; });
        });
    if (!used) continue;
    worker_of[e] = static_cast<int>(placed.experts.size());
    placed.experts.push_back({p.experts[e].name, {}, p.experts[e].threads, p.experts[e].wish, {}});
  }
  for (size_t i = 0; i < solution.stages.size(); ++i) {
    const StageChoice& choice = solution.stages[i];
    const StageCandidate& s = p.stages[S(choice.candidate)];
    StagePlacement stage;
    stage.device = s.name;
    stage.layers = choice.layers;
    stage.resident_experts = choice.resident;
    stage.threads = s.threads;
    stage.wish = s.wish;
    for (const ExpertsPart& part : choice.parts) {
      const int worker = worker_of[S(part.worker)];
      stage.remote_experts.push_back({worker, part.layers});
      std::vector<LayerRange>& ranges = placed.experts[S(worker)].layers;
      if (!ranges.empty() && ranges.back().last == part.layers.first) {
        ranges.back().last = part.layers.last;
      } else {
        ranges.push_back(part.layers);
      }
    }
    if (i + 1 < solution.stages.size()) {
      stage.transport =
          HopBetween(p, choice.candidate, solution.stages[i + 1].candidate, choice.layers.last)
              .transport;
    }
    placed.stages.push_back(std::move(stage));
  }
  placed.speed = Predict(p, solution.stages);
  AddNotes(solution, &placed);
  return placed;
}

std::vector<DeviceUse> UsesOf(const Solution& solution) {
  const Problem& p = solution.problem;
  std::vector<DeviceUse> uses;
  std::vector<MemoryBill> experts(p.experts.size());
  std::vector<std::vector<int>> served(p.experts.size());
  for (size_t i = 0; i < solution.stages.size(); ++i) {
    const StageChoice& choice = solution.stages[i];
    const StageCandidate& s = p.stages[S(choice.candidate)];
    const StageDuties duties = DutiesOf(p, choice);
    const std::string worker = StageUseName(*p.wish, i);
    uses.push_back({s.name, worker,
                    StageBill(*p.model, p.shape, duties, choice.layers.first, choice.layers.last,
                              choice.resident.first, choice.resident.last)});
    uses.push_back({{s.name.host, "cpu"}, worker, StageHostBill(*p.model, p.shape, duties)});
    for (const ExpertsPart& part : choice.parts) {
      served[S(part.worker)].push_back(choice.candidate);
      for (int l = part.layers.first; l < part.layers.last; ++l) {
        experts[S(part.worker)][BillItem::kExperts] += p.model->weights.layers[S(l)].experts;
      }
    }
  }
  for (size_t e = 0, used = 0; e < experts.size(); ++e) {
    if (experts[e].total() == 0) continue;
    experts[e] += ExpertsBaseBill(*p.model, ExpertsShape(p, p.experts[e], served[e]));
    uses.push_back({p.experts[e].name, ExpertsUseName(*p.wish, used++), experts[e]});
  }
  std::erase_if(uses, [](const DeviceUse& use) { return use.bill.total() == 0; });
  return uses;
}

std::string StageUseName(const DeploymentWish& wish, size_t index) {
  return absl::StrCat(wish.name, "/stage", index);
}

std::string ExpertsUseName(const DeploymentWish& wish, size_t index) {
  return absl::StrCat(wish.name, "/experts", index);
}

}  // namespace packtrain
