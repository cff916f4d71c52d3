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
// Experts' products of a long ubatch go by tiles of so many rows of weights and tokens, so many on
// a multiprocessor at once (worker/kernels/cuda/mat_mul.cuh). Doctor measures full rounds of them.
inline constexpr double kTileRows = 128, kTileTokens = 64, kTilesAtOnce = 3;

// Attention of a prompt. A score costs its products, at this share of a bf16 product, and becomes a
// probability in the time of so many operations more: 8.4, 11.2 and 18 ps with 256, 512 and 1088
// values of keys and values a head.
inline constexpr double kAttentionShare = 0.71;
inline constexpr double kScoreFlops = 1050;
// Query rows of a multiprocessor at a time, two blocks of 64, and the part of a pass with all of
// them in flight for which the last ones are waited for.
inline constexpr double kAttentionRows = 128;
inline constexpr double kLastRows = 0.35;
inline constexpr double kDeltaNetShare = 0.076;  // of that; limited by its recurrence
// Kernels between products, of memory read: SwiGLU 0.44, sums of experts 0.48, MLA's copies 0.51.
// And of a layer's 30 to 43 kernels: they are launched one by one, and none takes no time.
inline constexpr double kBetweenShare = 0.5;
inline constexpr double kUbatchLayerSeconds = 100e-6;
// Layers whose experts are copied meanwhile, of their copies or their products, whichever take
// longer: 27 measured prompts took 1.00 to 1.09 times the sum in all, half their layers copied.
inline constexpr double kStreamedWaits = 1.06;
// What a decode step, which runs as a graph, costs besides its bytes, in small products. Counted in
// worker/device/cuda, where kernels differ as their times do: the router and its product are 1.5,
// gate and up 1, down 1.5, for experts are narrower than the measured ones; the shared expert,
// which runs beside the router, 0.5; choosing positions 6.1 to 8. Norms and attention are apart.
inline constexpr double kProductUs = 4.0;
inline constexpr double kMlaKernels = 10, kIndexerKernels = 3, kSelectionKernels = 8;
inline constexpr double kGqaKernels = 2.7, kDeltaNetKernels = 4;
inline constexpr double kMoeKernels = 4, kSharedKernels = 0.5, kDenseKernels = 2;
inline constexpr double kStageKernels = 5, kHeadKernels = 3;
// One multiprocessor normalises a row: a product's time for every so many values, 2.6 and 8.0 us
// for 2048 and 6144.
inline constexpr double kNormValues = 2730;
// All of that together, for kernels of a graph do not follow each other at once: 24 measured steps
// took 1.02 to 1.07 times the sum.
inline constexpr double kGraphGaps = 1.04;
// Attention in a decode step: a start, and the sum of the parts it is cut into, which grows with a
// head's values and the parts, of 32 positions at least. Measured: 13, 18 and 24 us for 128, 256
// and 512 values and few parts, 14, 19 and 28 us for all. Then 32 parts of 32 positions at a time.
inline constexpr double kAttendKernels = 2.7, kAttendValues = 250, kPartValues = 164;
inline constexpr int kPartedPositions = 1024;
inline constexpr double kPartedKernels = 0.56;
// A row of the head costs this besides its bytes. Rates are measured of rows so long.
inline constexpr double kHeadRowSeconds = 0.18e-9;
inline constexpr int kMeasuredColumns = 6144;

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
// Hops on one host: 24 KB one way, as workers measure them before they serve, and bytes/s of a
// prompt's chunk, 67 MB in 17.5 ms between two stages on one card. Two GPUs take shm for a decode
// step, which NCCL carries in 96 us, and NCCL for long chunks, at the rate of their links.
inline constexpr double kShmSeconds = 44e-6, kShmRate = 3.8e9;
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
inline constexpr double kStepSeconds = 20e-6;
// Of a prompt: from its request to its first ubatch, and the rows of the embedding table that the
// first stage gathers.
inline constexpr double kPromptSeconds = 0.5e-3, kPromptRowSeconds = 0.4e-6;

}  // namespace packtrain
