// What the worker finds when it loads this library.

#include <cuda_runtime_api.h>

#include "worker/device/cuda/copy_meter.h"
#include "worker/device/cuda/cuda_probe.h"
#include "worker/device/cuda/cuda_stage.h"
#ifdef PACKTRAIN_NCCL
#include "worker/transport/nccl/nccl_library.h"
#include "worker/transport/nccl/nccl_transport.h"
#endif

namespace packtrain {
namespace {

void PinHost(int device, void* data, size_t bytes) {
  // This thread's first calls would set up the first device otherwise.
  cudaSetDevice(device);
  cudaHostRegister(data, bytes, cudaHostRegisterPortable);
  static_cast<void>(cudaGetLastError());
}

void UnpinHost(int device, void* data) {
  cudaSetDevice(device);
  cudaHostUnregister(data);
  static_cast<void>(cudaGetLastError());
}

absl::StatusOr<std::unique_ptr<Stage>> CreateStage(const ModelConfig& config,
                                                   const ModelTensors& tensors,
                                                   const WeightSource& source,
                                                   const StageSpec& spec,
                                                   const CudaStageOptions& options) {
  SetBundlePinning(
      {.pin = [device = options.device](void* data, size_t n) { PinHost(device, data, n); },
       .unpin = [device = options.device](void* data) { UnpinHost(device, data); }});
  auto stage = CudaStage::Create(config, tensors, source, spec, options);
  if (!stage.ok()) return stage.status();
  return std::move(stage).value();
}

std::string BusId(int device) {
  char text[32] = {};
  return cudaDeviceGetPCIBusId(text, sizeof text, device) == cudaSuccess ? text : "";
}

std::string NcclVersion() {
#ifdef PACKTRAIN_NCCL
  const auto nccl = LoadNccl();
  if (nccl.ok()) return (*nccl)->version;
#endif
  return "";
}

}  // namespace
}  // namespace packtrain

extern "C" __attribute__((visibility("default"))) const packtrain::CudaPlugin*
packtrain_cuda_plugin() {
  static const packtrain::CudaPlugin plugin = {
      .create_stage = &packtrain::CreateStage,
      .probe = &packtrain::ProbeGpus,
      .measure = &packtrain::MeasureGpu,
      .bus_id = &packtrain::BusId,
      .measure_copies = &packtrain::MeasureCopies,
      .pin_host = &packtrain::PinHost,
      .unpin_host = &packtrain::UnpinHost,
      .nccl_version = &packtrain::NcclVersion,
#ifdef PACKTRAIN_NCCL
      .make_nccl_transport = &packtrain::MakeNcclTransport,
#else
      .make_nccl_transport = nullptr,
#endif
  };
  return &plugin;
}
