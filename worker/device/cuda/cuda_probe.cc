#include "worker/device/cuda/cuda_probe.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_memory.h"
#include "worker/device/cuda/cuda_recording.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/device/measured_types.h"
#include "worker/kernels/cuda/probe.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Far more than any L2 holds.
constexpr size_t kWeightBytes = size_t{512} << 20;
constexpr size_t kCopyBytes = size_t{128} << 20;
constexpr size_t kFreeNeeded = size_t{1536} << 20;
constexpr int kColumns = 6144;
constexpr int kGemmRows = 8192;                     // of weights
constexpr int kFewTokens = 64, kManyTokens = 1024;  // the two points of a long ubatch's line
constexpr int kRounds = 5;
constexpr int kChain = 200;  // kernels of a graph
constexpr uint32_t kTrips = 2000;
constexpr uint64_t kFlagNanoseconds = 500'000'000;

// The device's memory and streams for as long as it is measured.
class Measurement {
 public:
  Measurement() : run_(config_) {}
  ~Measurement() {
    for (cudaEvent_t event : {begin_, end_}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (run_.stream != nullptr) cudaStreamDestroy(run_.stream);
  }
  Measurement(const Measurement&) = delete;
  Measurement& operator=(const Measurement&) = delete;

  absl::Status Run(GpuFacts* facts) {
    RETURN_IF_ERROR(Open());
    RETURN_IF_ERROR(Copies(facts));
    RETURN_IF_ERROR(Flags(facts));
    ASSIGN_OR_RETURN(double seconds, Time([&] {
                       return cuda::ReadMemory(weights_, kWeightBytes, sink_, run_.stream);
                     }));
    facts->read_gb_per_s = static_cast<double>(kWeightBytes) / seconds / 1e9;
    ASSIGN_OR_RETURN(seconds, Time([&] {
                       return cuda::Gemm({.a = many_.bf16,
                                          .lda = kColumns,
                                          .b = run_.unpacked,
                                          .c = y_,
                                          .ldc = kGemmRows,
                                          .m = kManyTokens,
                                          .n = kGemmRows,
                                          .k = kColumns},
                                         run_.stream);
                     }));
    facts->bf16_tflops = 2.0 * kManyTokens * kGemmRows * kColumns / seconds / 1e12;
    RETURN_IF_ERROR(Chain(facts));
    for (const TensorType type : kMeasuredTypes) {
      ASSIGN_OR_RETURN(WeightRate rate, Weights(*cuda::FindWeightKernels(type)));
      rate.type = std::string(TypeName(type));
      facts->weight_rates.push_back(std::move(rate));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Open() {
    RETURN_IF_CUDA(cudaStreamCreateWithFlags(&run_.stream, cudaStreamNonBlocking));
    RETURN_IF_CUDA(cudaEventCreate(&begin_));
    RETURN_IF_CUDA(cudaEventCreate(&end_));
    RETURN_IF_CUDA(cuda::PrepareDevice());
    // The widest type of a token's product: one result per row.
    const size_t most_rows = kWeightBytes / (kColumns / 8);
    run_.unpacked_capacity = size_t{kGemmRows} * kColumns;
    memory_.Add(&weights_, kWeightBytes);
    memory_.Add(&sink_, 1);
    memory_.Add(&y_, std::max(most_rows, size_t{kGemmRows} * kManyTokens));
    memory_.Add(&run_.unpacked, run_.unpacked_capacity);
    many_ = {.rows = kManyTokens, .n = kColumns};
    one_ = {.rows = 1, .n = kColumns};
    memory_.Add(&many_.f32, size_t{kManyTokens} * kColumns);
    memory_.Add(&many_.bf16, size_t{kManyTokens} * kColumns);
    memory_.Add(&one_.q8, cuda::Q8RowBytes(kColumns));
    RETURN_IF_ERROR(memory_.Allocate("measuring", true));
    one_.f32 = many_.f32;
    // Scales of all types are then ordinary numbers.
    std::minstd_rand random(1);
    ASSIGN_OR_RETURN(host_, PinnedMemory::Allocate(kCopyBytes));
    for (size_t i = 0; i < kCopyBytes; ++i) {
      host_->data()[i] = static_cast<std::byte>(((random() >> 8) & 0xbf) | 4);
    }
    for (size_t at = 0; at < kWeightBytes; at += kCopyBytes) {
      RETURN_IF_CUDA(cudaMemcpy(weights_ + at, host_->data(), kCopyBytes, cudaMemcpyHostToDevice));
    }
    // 0x3c3c3c3c as f32 is 0.011.
    RETURN_IF_CUDA(cudaMemset(many_.f32, 0x3c, size_t{kManyTokens} * kColumns * sizeof(float)));
    RETURN_IF_CUDA(cuda::Convert(many_.f32, kManyTokens, kColumns, kColumns, {.bf16 = many_.bf16},
                                 run_.stream));
    RETURN_IF_CUDA(cuda::Convert(many_.f32, 1, kColumns, kColumns, {.q8 = one_.q8}, run_.stream));
    return Wait();
  }

  absl::Status Wait() {
    RETURN_IF_ERROR(run_.status);
    RETURN_IF_CUDA(cudaStreamSynchronize(run_.stream));
    return absl::OkStatus();
  }

  // Least seconds of what `enqueue` puts on the stream; the first round warms up.
  absl::StatusOr<double> Time(const std::function<int()>& enqueue) {
    float best = 0;
    for (int i = 0; i <= kRounds; ++i) {
      RETURN_IF_CUDA(cudaEventRecord(begin_, run_.stream));
      RETURN_IF_CUDA(enqueue());
      RETURN_IF_CUDA(cudaEventRecord(end_, run_.stream));
      RETURN_IF_ERROR(Wait());
      float ms = 0;
      RETURN_IF_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
      if (i == 1 || (i > 1 && ms < best)) best = ms;
    }
    return std::max(best, 1e-6F) * 1e-3;
  }

  absl::Status Copies(GpuFacts* facts) {
    const auto rate = [&](void* to, const void* from) -> absl::StatusOr<double> {
      ASSIGN_OR_RETURN(const double seconds, Time([&] {
                         return static_cast<int>(
                             cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDefault, run_.stream));
                       }));
      return static_cast<double>(kCopyBytes) / seconds / 1e9;
    };
    ASSIGN_OR_RETURN(facts->to_device_gb_per_s, rate(weights_, host_->data()));
    ASSIGN_OR_RETURN(facts->from_device_gb_per_s, rate(host_->data(), weights_));
    return absl::OkStatus();
  }

  absl::Status Flags(GpuFacts* facts) {
    ASSIGN_OR_RETURN(const auto flags, PinnedMemory::Allocate(256));
    auto* const ping = reinterpret_cast<uint32_t*>(flags->data());
    auto* const pong = ping + 32;
    std::atomic_ref<uint32_t> ask(*ping), answer(*pong);
    ask = answer = 0;
    RETURN_IF_CUDA(cuda::AnswerFlags(ping, pong, kTrips, kFlagNanoseconds, run_.stream));
    const auto deadline = Clock::now() + std::chrono::nanoseconds(kFlagNanoseconds);
    std::vector<double> trips;
    for (uint32_t i = 1; i <= kTrips && Clock::now() < deadline; ++i) {
      const Clock::time_point begin = Clock::now();
      ask.store(i, std::memory_order_release);
      while (answer.load(std::memory_order_acquire) != i && Clock::now() < deadline) {
      }
      trips.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    RETURN_IF_ERROR(Wait());
    if (trips.size() < kTrips) return absl::OkStatus();
    std::nth_element(trips.begin(), trips.begin() + kTrips / 2, trips.end());
    facts->flag_round_trip_us = trips[kTrips / 2];
    return absl::OkStatus();
  }

  absl::Status Chain(GpuFacts* facts) {
    CudaRecording recording;
    RETURN_IF_ERROR(recording.Begin(run_.stream));
    for (int i = 0; i < kChain; ++i) {
      run_.Check(cuda::AddScaled(y_, many_.f32, nullptr, 1, kColumns, run_.stream), "AddScaled");
    }
    RETURN_IF_ERROR(recording.End());
    absl::Status status;
    ASSIGN_OR_RETURN(const double seconds, Time([&] {
                       status.Update(recording.Replay(run_.stream));
                       return 0;
                     }));
    RETURN_IF_ERROR(status);
    facts->kernel_us = seconds * 1e6 / kChain;
    return absl::OkStatus();
  }

  absl::StatusOr<WeightRate> Weights(const cuda::WeightKernels& kernels) {
    WeightRate rate;
    DeviceMatrix w{.kernels = &kernels, .data = weights_, .rows = 0, .cols = kColumns};
    const auto seconds_of = [&](int rows, DeviceActivations x) {
      w.rows = rows;
      return Time([&] {
        DeviceLinear(&run_, w, x, y_);
        return 0;
      });
    };
    const auto rows = static_cast<int>(kWeightBytes / w.row_bytes() / 64 * 64);
    ASSIGN_OR_RETURN(const double one, seconds_of(rows, one_));
    rate.read_gb_per_s = static_cast<double>(w.row_bytes()) * rows / one / 1e9;
    DeviceActivations few = many_;
    few.rows = kFewTokens;
    ASSIGN_OR_RETURN(const double low, seconds_of(kGemmRows, few));
    ASSIGN_OR_RETURN(const double high, seconds_of(kGemmRows, many_));
    const double per_token = (high - low) / (kManyTokens - kFewTokens);
    const double pass = low - kFewTokens * per_token;
    if (per_token > 0) rate.tflops = 2.0 * kGemmRows * kColumns / per_token / 1e12;
    if (pass > 0) rate.pass_gb_per_s = static_cast<double>(w.row_bytes()) * kGemmRows / pass / 1e9;
    return rate;
  }

  ModelConfig config_;
  CudaRun run_;
  DevicePlan memory_;
  std::unique_ptr<PinnedMemory> host_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  uint8_t* weights_ = nullptr;
  uint32_t* sink_ = nullptr;
  float* y_ = nullptr;
  DeviceActivations many_, one_;
};

absl::StatusOr<GpuFacts> ProbeGpu(int device, int count, bool measure) {
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
  if (measure && free >= kFreeNeeded) RETURN_IF_ERROR(Measurement().Run(&facts));
  return facts;
}

}  // namespace

absl::StatusOr<std::vector<GpuFacts>> ProbeGpus(bool measure) {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code == cudaErrorNoDevice) {
    return std::vector<GpuFacts>();
  } else if (code != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA driver cannot be used: ", cudaGetErrorString(code)));
  }
  std::vector<GpuFacts> gpus;
  for (int device = 0; device < count; ++device) {
    ASSIGN_OR_RETURN(GpuFacts facts, ProbeGpu(device, count, measure));
    RETURN_IF_CUDA(cudaDeviceReset());
    gpus.push_back(std::move(facts));
  }
  return gpus;
}

}  // namespace packtrain
