#pragma once

namespace packtrain {

// The constants of the speed model, for what nobody has measured of a device and for what cannot be
// measured of one. Shares are of what was measured; those of an H200 unless another is named.

// Mat-vec kernels, of memory read, where memory is what limits them: 0.88 with Q8_0 and F16, which
// need next to no unpacking. An H200, with three times a consumer card's bandwidth per
// multiprocessor, unpacks Q4_K at 0.67 and IQ2_XS at 0.32: that is for doctor to tell.
inline constexpr double kGpuReadShare = 0.85;
// Experts that one token picks, likewise: 8 x 3 matrices instead of one.
inline constexpr double kGpuPickedShare = 0.75;
// Unpacking and multiplying 2048 rows, of the product alone.
inline constexpr double kGemmShare = 0.45;
// Experts in a long ubatch, each with its own rows.
inline constexpr double kGroupedShare = 0.65;
// Products of attention, of a bf16 product: 101 and 56 of 261 TFLOP/s.
inline constexpr double kMlaShare = 0.39;
inline constexpr double kGqaShare = 0.21;
inline constexpr double kDeltaNetShare = 0.054;  // limited by its recurrence
// Rows read and written between the products of a layer, in rows of the residual.
inline constexpr double kActivationPasses = 45;
// Products of attention in a decode step, of an f32 product: 10 and 6 of 26 TFLOP/s. They are in
// f32 too, of one row, and the context is cut into few parts.
inline constexpr double kMlaDecodeShare = 0.38;
inline constexpr double kGqaDecodeShare = 0.24;
// An f32 product of a bf16 one: 14 of 71 TFLOP/s, for cards as rigs list them.
inline constexpr double kF32Share = 0.2;
// Kernels of a decode step, which run as a graph; each costs something besides its bytes. Counted
// in worker/device/cuda; the sums are what the workers count.
inline constexpr double kProductUs = 4.0;
inline constexpr int kMlaKernels = 12, kIndexerKernels = 4, kSelectionKernels = 5;
inline constexpr int kGqaKernels = 6, kDeltaNetKernels = 4;
inline constexpr int kMoeKernels = 5, kSharedKernels = 2, kDenseKernels = 3;
inline constexpr int kStageKernels = 4, kHeadKernels = 4;

inline constexpr double kExpertsReadShare = 0.85;   // CPU kernels, of DRAM read
inline constexpr double kCpuStageReadShare = 0.75;  // a whole CPU stage, with its barriers
inline constexpr double kCpuLayerSeconds = 40e-6;
// Long ubatches on a CPU, of what its products reach alone: with barriers, attention and all that
// lies between them. 16 cores with AVX-512: 0.74; 2 cores with AVX2: 0.9.
inline constexpr double kCpuUbatchShare = 0.75;
inline constexpr double kExpertsLayerUs = 20;  // where `packtrain doctor` has not measured it
inline constexpr double kCpuCoreFlops = 30e9;  // quantised products of one core in long ubatches
inline constexpr double kNarrowLink = 2e9;     // bytes/s: a riser with one lane
// An exchange of GPU and experts worker besides two flags' round trips: 12 us in all.
inline constexpr double kMailboxSeconds = 9e-6;
// Hops, as workers measure them on one host before they serve: 24 KB one way, and bytes/s of 200
// MB. Two GPUs take shm for a decode step, which NCCL carries in 96 us, and NCCL for long chunks,
// at the rate of their links.
inline constexpr double kShmSeconds = 44e-6, kShmRate = 2.9e9;
inline constexpr double kGrpcSeconds = 135e-6, kGrpcRate = 1.7e9;
// Two stages on one card are two processes that take turns.
inline constexpr double kTurnSeconds = 280e-6;

// The request that a plan is made for: new tokens of a prompt, positions in the cache while it
// decodes, and tokens that it generates.
inline constexpr int kPrompt = 8192;
inline constexpr int kDepth = 2048;
inline constexpr int kGenerated = 4096;

// Cost of a step that no device carries: control, the token's way back. 46 us of a token with one
// stage, most of it while the devices are busy.
inline constexpr double kStepSeconds = 40e-6;

}  // namespace packtrain
