#include "worker/device/cuda/weight_probe.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "worker/device/measured_types.h"

namespace packtrain {
namespace {

constexpr size_t kWeightBytes = ProbeBench::kWeightBytes;
constexpr int kColumns = ProbeBench::kColumns, kRows = ProbeBench::kRows;
// The two points of a long ubatch's line: both beyond where reading the weights takes longest.
constexpr int kFewTokens = 512, kManyTokens = ProbeBench::kManyTokens;
// A small product of a decode step, and how many different ones follow each other in a graph.
constexpr int kSmallSide = 2048;
constexpr int kChain = 100;
// Experts that a token picks, of the size of one.
constexpr int kExpertDim = 1024;
constexpr int kPicks = 8;
constexpr int kMostPasses = 16;  // over different experts, in a graph
// Experts of a layer in a long ubatch, with so many tokens each on average: as many as a layer has,
// for fewer would leave multiprocessors without work.
constexpr int kExperts = 128, kExpertColumns = 2048;
constexpr int kFewEach = 16, kManyEach = 256;
// Their products go by tiles, so many on a multiprocessor at once: as in mat_mul.cuh.
constexpr int kTileRows = 128, kTileTokens = 64, kTilesAtOnce = 3;

class WeightProbe {
 public:
  explicit WeightProbe(ProbeBench* bench) : bench_(bench) {}

  absl::Status Run(GpuFacts* facts) {
    multiprocessors_ = facts->multiprocessors;
    RETURN_IF_ERROR(Open());
    for (const TensorType type : kMeasuredTypes) {
      ASSIGN_OR_RETURN(WeightRate rate, Weights(*cuda::FindWeightKernels(type)));
      rate.type = std::string(TypeName(type));
      facts->weight_rates.push_back(std::move(rate));
    }
    RETURN_IF_ERROR(Chain(facts));
    for (size_t i = 0; i < std::size(kMeasuredTypes); ++i) {
      const cuda::WeightKernels& kernels = *cuda::FindWeightKernels(kMeasuredTypes[i]);
      if (kernels.gate_up == nullptr || kernels.mat_mul == nullptr) continue;
      RETURN_IF_ERROR(PickedExperts(kernels, facts->product_us * 1e-6, &facts->weight_rates[i]));
      RETURN_IF_ERROR(GroupedExperts(kernels, &facts->weight_rates[i]));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Open() {
    memory_.Add(&small_.q8, cuda::Q8RowBytes(kSmallSide));
    memory_.Add(&inner_, kPicks * cuda::Q8RowBytes(kExpertDim));
    memory_.Add(&picks_, size_t{kMostPasses} * kPicks);
    memory_.Add(&offsets_, kExperts + 1);
    memory_.Add(&token_of_row_, size_t{kExperts} * kManyEach);
    memory_.Add(&grouped_, size_t{kExperts} * kManyEach * kExpertDim);
    RETURN_IF_ERROR(memory_.Allocate("measuring", true));
    small_ = {.rows = 1, .n = kSmallSide, .f32 = bench_->many.f32, .q8 = small_.q8};
    RETURN_IF_CUDA(cuda::Convert(small_.f32, 1, kSmallSide, kSmallSide, {.q8 = small_.q8},
                                 bench_->run.stream));
    return bench_->Wait();
  }

  absl::StatusOr<WeightRate> Weights(const cuda::WeightKernels& kernels) {
    WeightRate rate;
    DeviceMatrix w{.kernels = &kernels, .data = bench_->weights, .rows = 0, .cols = kColumns};
    const auto seconds_of = [&](int rows, DeviceActivations x) {
      w.rows = rows;
      return bench_->Time([&] {
        DeviceLinear(&bench_->run, w, x, bench_->y);
        return 0;
      });
    };
    const auto rows = static_cast<int>(kWeightBytes / w.row_bytes() / 64 * 64);
    ASSIGN_OR_RETURN(const double one, seconds_of(rows, bench_->one));
    rate.read_gb_per_s = static_cast<double>(w.row_bytes()) * rows / one / 1e9;
    DeviceActivations few = bench_->many;
    few.rows = kFewTokens;
    ASSIGN_OR_RETURN(const double low, seconds_of(kRows, few));
    ASSIGN_OR_RETURN(const double high, seconds_of(kRows, bench_->many));
    const double per_token = (high - low) / (kManyTokens - kFewTokens);
    const double pass = low - kFewTokens * per_token;
    if (per_token > 0) rate.tflops = 2.0 * kRows * kColumns / per_token / 1e12;
    if (pass > 0) rate.pass_gb_per_s = static_cast<double>(w.row_bytes()) * kRows / pass / 1e9;
    return rate;
  }

  // Small products, each with weights of its own.
  absl::Status Chain(GpuFacts* facts) {
    constexpr TensorType kType = TensorType::kQ8_0;
    DeviceMatrix w{.kernels = cuda::FindWeightKernels(kType),
                   .data = bench_->weights,
                   .rows = kSmallSide,
                   .cols = kSmallSide};
    const size_t bytes = w.row_bytes() * kSmallSide;
    static_assert(size_t{kChain} * kSmallSide * kSmallSide * 34 / 32 <= kWeightBytes);
    ASSIGN_OR_RETURN(const double seconds, bench_->TimeRecorded([&] {
      for (int i = 0; i < kChain; ++i, w.data += bytes) {
        DeviceLinear(&bench_->run, w, small_, bench_->y);
      }
    }));
    const auto rate = std::find_if(facts->weight_rates.begin(), facts->weight_rates.end(),
                                   [](const WeightRate& r) { return r.type == TypeName(kType); });
    const double reading = static_cast<double>(bytes) / (rate->read_gb_per_s * 1e9);
    facts->product_us = std::max(seconds / kChain - reading, 0.0) * 1e6;
    return absl::OkStatus();
  }

  // One token's experts in one layer after the other, never the same twice.
  absl::Status PickedExperts(const cuda::WeightKernels& kernels, double kernel_seconds,
                             WeightRate* rate) {
    const size_t gate_row = RowBytes(kernels.type, kColumns),
                 down_row = RowBytes(kernels.type, kExpertDim);
    const size_t matrix = gate_row * kExpertDim;
    const int experts = static_cast<int>(kWeightBytes / 64 * 64 / (3 * matrix));
    const int passes = std::min(experts / kPicks, kMostPasses);
    if (passes < 2) return absl::OkStatus();
    std::vector<int32_t> ids(size_t{kMostPasses} * kPicks);
    std::iota(ids.begin(), ids.end(), 0);
    RETURN_IF_CUDA(
        cudaMemcpy(picks_, ids.data(), ids.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    const uint8_t* const up = bench_->weights + static_cast<size_t>(experts) * matrix;
    const uint8_t* const down = up + static_cast<size_t>(experts) * matrix;
    const auto gate_up_of = [&](const int32_t* picked) {
      return kernels.gate_up({.gate = bench_->weights,
                              .up = up,
                              .expert_stride = matrix,
                              .ids = picked,
                              .rows = kExpertDim,
                              .n = kColumns,
                              .x = bench_->one.q8,
                              .pairs = kPicks,
                              .pairs_per_row = kPicks,
                              .out = {.q8 = inner_}},
                             bench_->run.stream);
    };
    const auto down_of = [&](const int32_t* picked) {
      return kernels.down({.w = down,
                           .expert_stride = down_row * kColumns,
                           .ids = picked,
                           .weights = bench_->many.f32,
                           .rows = kColumns,
                           .n = kExpertDim,
                           .x = inner_,
                           .tokens = 1,
                           .top_k = kPicks,
                           .y = bench_->y},
                          bench_->run.stream);
    };
    // GB/s of so many matrices of each expert.
    const auto rate_of = [&](int matrices, const auto& launch) -> absl::StatusOr<double> {
      ASSIGN_OR_RETURN(const double seconds, bench_->TimeRecorded([&] {
        for (int i = 0; i < passes; ++i) {
          bench_->run.Check(launch(picks_ + i * kPicks), "picked experts");
        }
      }));
      const double reading = seconds / passes - kernel_seconds;
      return reading > 0 ? static_cast<double>(matrices * matrix) * kPicks / reading / 1e9 : 0;
    };
    ASSIGN_OR_RETURN(rate->experts_gb_per_s, rate_of(2, gate_up_of));
    ASSIGN_OR_RETURN(rate->experts_down_gb_per_s, rate_of(1, down_of));
    return absl::OkStatus();
  }

  // Experts with as many tokens as fall to each by chance; seconds, as if the last round of tiles
  // kept all multiprocessors busy, too.
  absl::StatusOr<double> GroupedProduct(const cuda::WeightKernels& kernels, int each) {
    std::minstd_rand random(1);
    std::vector<int32_t> offsets(kExperts + 1), tokens(static_cast<size_t>(kExperts * each));
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(random() >> 8) % kManyTokens;
      ++offsets[(random() >> 8) % kExperts + 1];
    }
    int tiles = 0;
    for (const int32_t count : offsets) tiles += (count + kTileTokens - 1) / kTileTokens;
    const double rounds = static_cast<double>(tiles) * (kExpertDim / kTileRows) /
                          (kTilesAtOnce * std::max(multiprocessors_, 1));
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    RETURN_IF_CUDA(cudaMemcpy(offsets_, offsets.data(), offsets.size() * sizeof(int32_t),
                              cudaMemcpyHostToDevice));
    RETURN_IF_CUDA(cudaMemcpy(token_of_row_, tokens.data(), tokens.size() * sizeof(int32_t),
                              cudaMemcpyHostToDevice));
    cuda::MatMulArgs args;
    args.parts[0] = {.w = bench_->weights,
                     .expert_stride = RowBytes(kernels.type, kExpertColumns) * kExpertDim,
                     .y = grouped_,
                     .rows = kExpertDim};
    args.n = kExpertColumns;
    args.x = bench_->many.bf16;
    args.row_index = token_of_row_;
    args.groups = kExperts;
    args.offsets = offsets_;
    args.tokens = static_cast<int>(tokens.size());
    ASSIGN_OR_RETURN(const double seconds,
                     bench_->Time([&] { return kernels.mat_mul(args, bench_->run.stream); }));
    return seconds * rounds / std::ceil(rounds);
  }

  absl::Status GroupedExperts(const cuda::WeightKernels& kernels, WeightRate* rate) {
    ASSIGN_OR_RETURN(const double low, GroupedProduct(kernels, kFewEach));
    ASSIGN_OR_RETURN(const double high, GroupedProduct(kernels, kManyEach));
    const double per_token = (high - low) / (kExperts * (kManyEach - kFewEach));
    const double pass = low - kExperts * kFewEach * per_token;
    const double bytes =
        static_cast<double>(RowBytes(kernels.type, kExpertColumns)) * kExpertDim * kExperts;
    if (per_token > 0) rate->experts_tflops = 2.0 * kExpertDim * kExpertColumns / per_token / 1e12;
    if (pass > 0) rate->experts_pass_gb_per_s = bytes / pass / 1e9;
    return absl::OkStatus();
  }

  ProbeBench* const bench_;
  int multiprocessors_ = 0;
  DevicePlan memory_;
  DeviceActivations small_;          // one row of kSmallSide
  uint8_t* inner_ = nullptr;         // [kPicks] Q8 rows of kExpertDim
  int32_t* picks_ = nullptr;         // [kMostPasses, kPicks]
  int32_t* offsets_ = nullptr;       // [kExperts + 1]
  int32_t* token_of_row_ = nullptr;  // [kExperts * kManyEach]
  float* grouped_ = nullptr;         // [kExperts * kManyEach, kExpertDim]
};

}  // namespace

absl::Status MeasureWeights(ProbeBench* bench, GpuFacts* facts) {
  return WeightProbe(bench).Run(facts);
}

}  // namespace packtrain
