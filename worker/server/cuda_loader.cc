#include "worker/server/cuda_loader.h"

#include <string_view>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/model/config.h"
#include "common/model/tensors.h"
#include "common/model/weight_segment.h"
#include "common/model/weight_source.h"
#include "common/weights/gguf.h"
#include "worker/device/cuda_plugin.h"
#include "worker/engine/bundle_memory.h"
#include "worker/server/device_name.h"
#include "worker/server/load_bill.h"
#include "worker/server/sampling_functions.h"

namespace packtrain {
namespace {

// Everything that a stage borrows.
struct CudaModel {
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  std::unique_ptr<ModelTensors> tensors;
  std::unique_ptr<MappedWeights> weights;
  std::vector<std::unique_ptr<SegmentWeights>> experts;  // in RAM, of other workers
};

absl::StatusOr<std::vector<CudaStageOptions::Streamed>> MapExperts(const LoadRequest& request,
                                                                   CudaModel* model) {
  std::vector<CudaStageOptions::Streamed> streamed;
  for (const LoadRequest::ExpertsSegment& in : request.experts_segments) {
    for (const auto& [first, last] : in.layers) {
      if (first < 0 || first >= last || last > model->config.num_layers) {
        return absl::InvalidArgumentError(
            absl::StrFormat("experts segment of layers [%d, %d): the model has %d layers", first,
                            last, model->config.num_layers));
      }
    }
    if (!Segment::IsFinished(in.fd)) {
      return absl::FailedPreconditionError(
          absl::StrFormat("descriptor %d is no finished weight segment", in.fd));
    }
    ASSIGN_OR_RETURN(auto segment,
                     Segment::Open(in.fd, *model->file,
                                   PlanShardSegment(*model->file, model->config, *model->tensors,
                                                    ExpertsShards(in.layers)),
                                   {}));
    model->experts.push_back(std::make_unique<SegmentWeights>(std::move(segment)));
    streamed.push_back({model->experts.back().get(), in.layers});
  }
  return streamed;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadCudaModel(const LoadRequest& request, ExpertsClient* experts,
                                          const LoadProgress& progress) {
  ASSIGN_OR_RETURN(const int ordinal, CudaOrdinal(request.device));
  if (!request.stage) {
    return absl::InvalidArgumentError(
        absl::StrFormat("an experts worker needs the device cpu, not %s", request.device));
  }
  ASSIGN_OR_RETURN(const CudaPlugin* plugin, LoadCudaPlugin());
  SetBundlePinning({.pin = [=](void* data, size_t n) { plugin->pin_host(ordinal, data, n); },
                    .unpin = [=](void* data) { plugin->unpin_host(ordinal, data); }});
  auto model = std::make_shared<CudaModel>();
  ASSIGN_OR_RETURN(model->file, GgufFile::Open(request.model_path));
  ASSIGN_OR_RETURN(model->config, ReadModelConfig(*model->file));
  ASSIGN_OR_RETURN(ModelTensors tensors, ModelTensors::Resolve(model->config, *model->file));
  model->tensors = std::make_unique<ModelTensors>(std::move(tensors));
  RETURN_IF_ERROR(
      CheckHostBill(request, {model->config, WeighModel(model->config, *model->tensors)}));
  model->weights = std::make_unique<MappedWeights>(*model->file);
  LoadedModel loaded;
  loaded.hidden_dim = model->config.hidden_dim;
  loaded.vocab_size = model->config.vocab_size;
  loaded.selection_dim = model->config.indexer.top_k;
  loaded.expert_top_k = model->config.moe.top_k;
  ASSIGN_OR_RETURN(auto streamed, MapExperts(request, model.get()));
  ASSIGN_OR_RETURN(loaded.stage, plugin->create_stage(model->config, *model->tensors,
                                                      *model->weights, *request.stage,
                                                      {.device = ordinal,
                                                       .experts = experts,
                                                       .streamed = std::move(streamed),
                                                       .progress = progress}));
  loaded.memory = loaded.stage->memory();
  if (request.stage->has_head) loaded.sampling = MakeSampling();
  loaded.owner = std::move(model);
  return loaded;
}

DeviceLinks CudaLinks(const std::string& device) {
  const absl::StatusOr<int> ordinal = CudaOrdinal(device);
  if (!ordinal.ok()) return {};
  const absl::StatusOr<const CudaPlugin*> plugin = LoadCudaPlugin();
  if (!plugin.ok()) return {};
  DeviceLinks links;
  links.bus_id = (*plugin)->bus_id(*ordinal);
  if (links.bus_id.empty()) return {};
  links.measure_copies = [plugin = *plugin, ordinal = *ordinal](size_t bytes) {
    return plugin->measure_copies(ordinal, bytes);
  };
  links.nccl = (*plugin)->nccl_version();
  if (links.nccl.empty()) return links;
  links.make_nccl = [plugin = *plugin, ordinal = *ordinal](const PeerInfo& self,
                                                           std::vector<Transport*> carriers) {
    return plugin->make_nccl_transport(ordinal, self, std::move(carriers));
  };
  return links;
}

}  // namespace packtrain
