#pragma once

namespace packtrain {

// The constants of the speed model. Rates are shares of what was measured.
inline constexpr double kGpuReadShare = 0.70;  // quantised matrix-vector kernels, of memory read
inline constexpr double kGpuLayerSeconds = 20e-6;   // kernels of one layer inside a graph
inline constexpr double kGemmShare = 0.45;          // unpack and multiply, of bf16 peak
inline constexpr double kExpertsReadShare = 0.85;   // CPU kernels, of DRAM read
inline constexpr double kCpuStageReadShare = 0.75;  // a whole CPU stage, with its barriers
inline constexpr double kCpuLayerSeconds = 40e-6;
inline constexpr double kCpuCoreFlops = 30e9;    // quantised products of one core in long ubatches
inline constexpr double kNarrowLink = 2e9;       // bytes/s: a riser with one lane
inline constexpr double kMailboxSeconds = 6e-6;  // two flags and two kernel boundaries
inline constexpr double kNcclSeconds = 25e-6;
inline constexpr double kShmSeconds = 12e-6;
inline constexpr double kGrpcSeconds = 75e-6;  // one way, 24 KB, same host

inline constexpr int kDepth = 2048;  // positions in the cache that decode is predicted for

// Cost of a step that no device carries: control, sampling, the token's way back.
inline constexpr double kStepSeconds = 400e-6;

}  // namespace packtrain
