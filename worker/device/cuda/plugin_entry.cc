// What the worker finds when it loads this library.

#include "worker/device/cuda/cuda_stage.h"

namespace packtrain {
namespace {

absl::StatusOr<std::unique_ptr<Stage>> CreateStage(const ModelConfig& config,
                                                   const ModelTensors& tensors,
                                                   const WeightSource& source,
                                                   const StageSpec& spec,
                                                   const CudaStageOptions& options) {
  auto stage = CudaStage::Create(config, tensors, source, spec, options);
  if (!stage.ok()) return stage.status();
  return std::move(stage).value();
}

}  // namespace
}  // namespace packtrain

extern "C" __attribute__((visibility("default"))) const packtrain::CudaPlugin*
packtrain_cuda_plugin() {
  static const packtrain::CudaPlugin plugin = {.create_stage = &packtrain::CreateStage};
  return &plugin;
}
