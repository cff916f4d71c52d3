#pragma once

// The instruction set bundles that kernels are compiled for.

#include <string_view>

#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Gather};

// "scalar", "avx2", "avx512", "avx512_gather".
std::string_view IsaName(Isa isa);

// True if this CPU has every instruction of the bundle and the OS saves its registers.
//   kAvx2    AVX2, FMA, F16C, BMI2
//   kAvx512  in addition F, BW, VL, DQ, VBMI, VNNI, BITALG, VPOPCNTDQ, GFNI (Ice Lake, Zen 4)
//   kAvx512Gather  in addition FP16 (Sapphire Rapids), which stands for fast gathers, as nothing
//                  else tells: the microcode of older Intel CPUs slows them, Zen 4 is slow at them
bool IsaSupported(Isa isa);

}  // namespace packtrain
