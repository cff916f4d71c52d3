#include "worker/device/cuda/cuda_probe.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/probe_bench.h"
#include "worker/device/cuda/weight_probe.h"
#include "worker/kernels/cuda/probe.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kFreeNeeded = size_t{1536} << 20;
constexpr uint32_t kTrips = 2000;
constexpr uint64_t kFlagNanoseconds = 500'000'000;

absl::Status Copies(ProbeBench* bench, GpuFacts* facts) {
  const auto rate = [&](void* to, const void* from) -> absl::StatusOr<double> {
    ASSIGN_OR_RETURN(const double seconds, bench->Time([&] {
      return static_cast<int>(
          cudaMemcpyAsync(to, from, ProbeBench::kCopyBytes, cudaMemcpyDefault, bench->run.stream));
    }));
    return static_cast<double>(ProbeBench::kCopyBytes) / seconds / 1e9;
  };
  ASSIGN_OR_RETURN(facts->to_device_gb_per_s, rate(bench->weights, bench->host->data()));
  ASSIGN_OR_RETURN(facts->from_device_gb_per_s, rate(bench->host->data(), bench->weights));
  return absl::OkStatus();
}

absl::Status Flags(ProbeBench* bench, GpuFacts* facts) {
  ASSIGN_OR_RETURN(const auto flags, PinnedMemory::Allocate(256));
  auto* const ping = reinterpret_cast<uint32_t*>(flags->data());
  auto* const pong = ping + 32;
  std::atomic_ref<uint32_t> ask(*ping), answer(*pong);
  ask = answer = 0;
  RETURN_IF_CUDA(cuda::AnswerFlags(ping, pong, kTrips, kFlagNanoseconds, bench->run.stream));
  const auto deadline = Clock::now() + std::chrono::nanoseconds(kFlagNanoseconds);
  std::vector<double> trips;
  for (uint32_t i = 1; i <= kTrips && Clock::now() < deadline; ++i) {
    const Clock::time_point begin = Clock::now();
    ask.store(i, std::memory_order_release);
    while (answer.load(std::memory_order_acquire) != i && Clock::now() < deadline) {
    }
    trips.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  RETURN_IF_ERROR(bench->Wait());
  if (trips.size() < kTrips) return absl::OkStatus();
  std::nth_element(trips.begin(), trips.begin() + kTrips / 2, trips.end());
  facts->flag_round_trip_us = trips[kTrips / 2];
  return absl::OkStatus();
}

absl::Status Rates(ProbeBench* bench, GpuFacts* facts) {
  using B = ProbeBench;
  ASSIGN_OR_RETURN(double seconds, bench->Time([&] {
    return cuda::ReadMemory(bench->weights, B::kWeightBytes, bench->sink, bench->run.stream);
  }));
  facts->read_gb_per_s = static_cast<double>(B::kWeightBytes) / seconds / 1e9;
  ASSIGN_OR_RETURN(seconds, bench->Time([&] {
    return cuda::Gemm({.a = bench->many.bf16,
                       .lda = B::kColumns,
                       .b = bench->run.unpacked,
                       .c = bench->y,
                       .ldc = B::kRows,
                       .m = B::kManyTokens,
                       .n = B::kRows,
                       .k = B::kColumns},
                      bench->run.stream);
  }));
  facts->bf16_tflops = 2.0 * B::kManyTokens * B::kRows * B::kColumns / seconds / 1e12;
  return absl::OkStatus();
}

absl::Status MeasureRates(GpuFacts* facts) {
  ProbeBench bench;
  RETURN_IF_ERROR(bench.Open());
  RETURN_IF_ERROR(Copies(&bench, facts));
  RETURN_IF_ERROR(Flags(&bench, facts));
  RETURN_IF_ERROR(Rates(&bench, facts));
  return MeasureWeights(&bench, facts);
}

absl::StatusOr<GpuFacts> ProbeGpu(int device, int count) {
  GpuFacts facts;
  facts.index = device;
  cudaDeviceProp properties;
  RETURN_IF_CUDA(cudaGetDeviceProperties(&properties, device));
  facts.name = properties.name;
  facts.memory_bytes = properties.totalGlobalMem;
  facts.compute_capability = properties.major * 10 + properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  char pci[32] = {};
  RETURN_IF_CUDA(cudaDeviceGetPCIBusId(pci, sizeof(pci), device));
  for (const char* c = pci; *c != 0; ++c) {
    facts.pci.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(*c))));
  }
  for (int peer = 0; peer < count; ++peer) {
    int can = 0;
    if (peer != device) RETURN_IF_CUDA(cudaDeviceCanAccessPeer(&can, device, peer));
    if (can != 0) facts.peers.push_back(peer);
  }
  RETURN_IF_CUDA(cudaSetDevice(device));
  size_t free = 0, total = 0;
  RETURN_IF_CUDA(cudaMemGetInfo(&free, &total));
  facts.free_bytes = free;
  facts.memory_bytes = total;
  return facts;
}

absl::StatusOr<int> CountGpus() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorNoDevice) return 0;
  if (code != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA driver cannot be used: ", cudaGetErrorString(code)));
  }
  return count;
}

}  // namespace

absl::StatusOr<GpuFacts> MeasureGpu(int device) {
  ASSIGN_OR_RETURN(const int count, CountGpus());
  ASSIGN_OR_RETURN(GpuFacts facts, ProbeGpu(device, count));
  if (facts.free_bytes >= kFreeNeeded) RETURN_IF_ERROR(MeasureRates(&facts));
  return facts;
}

absl::StatusOr<std::vector<GpuFacts>> ProbeGpus() {
  ASSIGN_OR_RETURN(const int count, CountGpus());
  std::vector<GpuFacts> gpus;
  for (int device = 0; device < count; ++device) {
    ASSIGN_OR_RETURN(GpuFacts facts, ProbeGpu(device, count));
    RETURN_IF_CUDA(cudaDeviceReset());
    gpus.push_back(std::move(facts));
  }
  return gpus;
}

}  // namespace packtrain
