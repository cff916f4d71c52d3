#include "worker/server/cpu_loader.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <span>

#include "absl/strings/str_format.h"
#include "common/base/host_limits.h"
#include "common/base/status_macros.h"
#include "common/model/weight_segment.h"
#include "common/weights/gguf.h"
#include "worker/device/host_facts_reader.h"
#include "worker/graph/cpu_stage.h"
#include "worker/graph/layer_weights.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/ops/experts.h"
#include "worker/server/load_bill.h"
#include "worker/server/sampling_functions.h"

namespace packtrain {
namespace {

// Enough to keep an NVMe drive busy; more gains nothing and takes memory.
constexpr int kReadThreads = 4;

// Everything that a stage borrows.
struct CpuModel {
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  std::unique_ptr<ModelTensors> tensors;
  std::unique_ptr<SegmentWeights> weights;
  const CpuKernels* kernels = nullptr;
  std::unique_ptr<ThreadPool> pool;  // of an experts worker
};

absl::Status LoadWeights(const LoadRequest& request, const LoadProgress& progress,
                         CpuModel* model) {
  std::vector<Shard> shards;
  if (request.stage) {
    const StageSpec& s = *request.stage;
    shards.push_back({.first_layer = s.first_layer,
                      .last_layer = s.last_layer,
                      .embeds = s.embeds,
                      .has_head = s.has_head,
                      .first_experts = s.resident_first,
                      .last_experts = s.resident_last});
  } else {
    shards = ExpertsShards(request.experts->layers);
  }
  const SegmentLayout layout =
      PlanShardSegment(*model->file, model->config, *model->tensors, shards);
  int own_fd = -1;
  if (request.segment_fd < 0) {
    ASSIGN_OR_RETURN(const std::vector<int> fds, CreateSegments(std::span(&layout.bytes, 1)));
    own_fd = fds.front();
  }
  const int fd = own_fd >= 0 ? own_fd : request.segment_fd;
  auto segment =
      Segment::Open(fd, *model->file, layout, {.threads = kReadThreads, .progress = progress});
  // The mapping keeps the memory.
  if (own_fd >= 0) close(own_fd);
  RETURN_IF_ERROR(segment.status());
  spdlog::debug("{} bytes of weights {}, pages: {}", layout.bytes,
                (*segment)->was_filled() ? "found in memory" : "read", (*segment)->pages());
  model->weights = std::make_unique<SegmentWeights>(*std::move(segment));
  return absl::OkStatus();
}

// The CPUs of an experts worker's threads. None where its threads and the other workers' outnumber
// the CPUs (nobody may spin there), where less than two CPUs are left for stages and coordinator (a
// layer waits for a bound thread that shares its CPU), or where another worker may have as many and
// would choose the same: the kernel's scheduler shares a CPU better then.
std::vector<int> PoolCpus(const LoadRequest& request) {
  const int cpus = UsableCpus();
  const int threads = request.threads > 0 ? request.threads : cpus;
  if (request.spin_us == 0 || threads + 2 > cpus || 2 * threads <= cpus) return {};
  return SpreadCpus(threads);
}

absl::Status MakeExperts(const LoadRequest& request, CpuModel* model, LoadedModel* loaded) {
  int first = model->config.num_layers, last = 0;
  for (const auto& [f, l] : request.experts->layers) {
    if (f < 0 || f >= l || l > model->config.num_layers) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "experts of layers [%d, %d): the model has %d layers", f, l, model->config.num_layers));
    }
    first = std::min(first, f);
    last = std::max(last, l);
  }
  WeightBinder binder(model->config, *model->tensors, *model->weights, *model->kernels);
  std::vector<ExpertWeights> layers(static_cast<size_t>(std::max(0, last - first)));
  for (const auto& [f, l] : request.experts->layers) {
    for (int layer = f; layer < l; ++layer) {
      if (model->config.layers[static_cast<size_t>(layer)].ffn == FfnKind::kMoe) {
        layers[static_cast<size_t>(layer - first)] = binder.Experts(layer);
      }
    }
  }
  RETURN_IF_ERROR(binder.status());
  model->pool = std::make_unique<ThreadPool>(ThreadPoolOptions{
      .num_threads = request.threads, .spin_us = request.spin_us, .cpus = PoolCpus(request)});
  loaded->experts = std::make_unique<LocalExperts>(
      OpContext{.kernels = model->kernels, .pool = model->pool.get()}, first, std::move(layers));
  loaded->memory.weights = binder.bytes();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedModel> LoadCpuModel(const LoadRequest& request, ExpertsClient* experts,
                                         const LoadProgress& progress) {
  auto model = std::make_shared<CpuModel>();
  const char* isa = std::getenv("PACKTRAIN_ISA");
  ASSIGN_OR_RETURN(model->kernels, SelectCpuKernels(isa == nullptr ? "" : isa));
  ASSIGN_OR_RETURN(model->file, GgufFile::Open(request.model_path));
  ASSIGN_OR_RETURN(model->config, ReadModelConfig(*model->file));
  ASSIGN_OR_RETURN(ModelTensors tensors, ModelTensors::Resolve(model->config, *model->file));
  model->tensors = std::make_unique<ModelTensors>(std::move(tensors));
  RETURN_IF_ERROR(
      CheckHostBill(request, {model->config, WeighModel(model->config, *model->tensors)}));
  RETURN_IF_ERROR(LoadWeights(request, progress, model.get()));
  LoadedModel loaded;
  loaded.owner = model;
  loaded.hidden_dim = model->config.hidden_dim;
  loaded.vocab_size = model->config.vocab_size;
  loaded.selection_dim = model->config.indexer.top_k;
  loaded.expert_top_k = model->config.moe.top_k;
  if (request.stage) {
    ASSIGN_OR_RETURN(
        loaded.stage,
        CpuStage::Create(
            model->config, *model->tensors, *model->weights, *request.stage,
            {.kernels = model->kernels, .experts = experts, .spin_us = request.spin_us}));
    loaded.memory = loaded.stage->memory();
    if (request.stage->has_head) loaded.sampling = MakeSampling();
  } else {
    RETURN_IF_ERROR(MakeExperts(request, model.get(), &loaded));
  }
  return loaded;
}

}  // namespace packtrain
