#pragma once

namespace packtrain {

// The constants of the speed model, for what nobody has measured of a device and for what cannot be
// measured of one. Shares are of what was measured; those of an H200 unless another is named.

// Mat-vec kernels, of memory read: 0.65 with Q4_K, 0.71 with Q5_K, 0.62 with Q6_K, 0.93 with Q8_0.
inline constexpr double kGpuReadShare = 0.65;
// Unpacking and multiplying 2048 rows, of the product alone.
inline constexpr double kGemmShare = 0.45;
// Products of attention, of a bf16 product: 101 and 56 of 261 TFLOP/s.
inline constexpr double kMlaShare = 0.39;
inline constexpr double kGqaShare = 0.21;
inline constexpr double kDeltaNetShare = 0.028;  // limited by its recurrence
// Rows read and written between the products of a layer, in rows of the residual.
inline constexpr double kActivationPasses = 45;
// A decode step's kernels run as a graph: what one costs besides its bytes, in small kernels of a
// graph, and what such a kernel costs.
inline constexpr double kKernelCost = 2.0;
inline constexpr double kKernelUs = 1.0;
inline constexpr int kMlaKernels = 16, kIndexerKernels = 6, kGqaKernels = 13, kDeltaNetKernels = 9;
inline constexpr int kMoeKernels = 14, kDenseKernels = 4;

inline constexpr double kExpertsReadShare = 0.85;   // CPU kernels, of DRAM read
inline constexpr double kCpuStageReadShare = 0.75;  // a whole CPU stage, with its barriers
inline constexpr double kCpuLayerSeconds = 40e-6;
inline constexpr double kExpertsLayerUs = 20;  // where `packtrain doctor` has not measured it
inline constexpr double kCpuCoreFlops = 30e9;    // quantised products of one core in long ubatches
inline constexpr double kNarrowLink = 2e9;       // bytes/s: a riser with one lane
inline constexpr double kMailboxSeconds = 6e-6;  // two flags and two kernel boundaries
inline constexpr double kNcclSeconds = 25e-6;
inline constexpr double kShmSeconds = 12e-6;
inline constexpr double kGrpcSeconds = 75e-6;  // one way, 24 KB, same host

// The request that a plan is made for: new tokens of a prompt, positions in the cache while it
// decodes, and tokens that it generates.
inline constexpr int kPrompt = 8192;
inline constexpr int kDepth = 2048;
inline constexpr int kGenerated = 4096;

// Cost of a step that no device carries: control, sampling, the token's way back.
inline constexpr double kStepSeconds = 1000e-6;

}  // namespace packtrain
