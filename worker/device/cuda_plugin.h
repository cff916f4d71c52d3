#pragma once

// The door to the CUDA device library, which is loaded when a worker is told to use a GPU and is
// absent on machines without one.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/host_facts.h"
#include "common/model/config.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "worker/engine/stage.h"
#include "worker/transport/transport.h"

namespace packtrain {

class ExpertsClient;

struct CudaStageOptions {
  int device = 0;  // ordinal
  // Serves the MoE layers outside [resident_first, resident_last); may be null if there are none.
  ExpertsClient* experts = nullptr;
  // Where experts of layers that are not resident lie in this host's memory, page-aligned: large
  // ubatches stream them to the device.
  struct Streamed {
    const WeightSource* source = nullptr;
    std::vector<std::pair<int, int>> layers;  // half-open
  };
  std::vector<Streamed> streamed;
  LoadProgress progress;
};

// What libpacktrain_cuda.so exports. Both sides are built together: there is no version to
// negotiate.
struct CudaPlugin {
  // See CudaStage::Create.
  absl::StatusOr<std::unique_ptr<Stage>> (*create_stage)(const ModelConfig& config,
                                                         const ModelTensors& tensors,
                                                         const WeightSource& source,
                                                         const StageSpec& spec,
                                                         const CudaStageOptions& options);
  // See ProbeGpus and MeasureGpu.
  absl::StatusOr<std::vector<GpuFacts>> (*probe)();
  absl::StatusOr<GpuFacts> (*measure)(int device);
  // The device's place on the bus, which tells it apart on its host; empty if there is no such.
  std::string (*bus_id)(int device);
  // See worker/device/cuda/copy_meter.h.
  absl::StatusOr<double> (*measure_copies)(int device, size_t bytes);
  // Page-locks memory of the host for the device's copies. It stays as it was if that fails.
  void (*pin_host)(int device, void* data, size_t bytes);
  void (*unpin_host)(int device, void* data);
  // Of the NCCL that this machine has, "2.28.9"; empty if it has none or this library was built
  // without it.
  std::string (*nccl_version)();
  // See worker/transport/nccl. Null if built without NCCL.
  std::unique_ptr<Transport> (*make_nccl_transport)(int device, const PeerInfo& self,
                                                    std::vector<Transport*> carriers);
};

// Loads libpacktrain_cuda.so from the executable's folder or ../lib beside it; once, it stays
// loaded. Errors: FAILED_PRECONDITION with the loader's own words.
absl::StatusOr<const CudaPlugin*> LoadCudaPlugin();

}  // namespace packtrain
