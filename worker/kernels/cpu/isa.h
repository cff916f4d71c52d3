#pragma once

// The instruction set bundles that kernels are compiled for.

#include <string_view>

#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

// "scalar", "avx2", "avx512".
std::string_view IsaName(Isa isa);

// True if this CPU has every instruction of the bundle and the OS saves its registers.
//   kAvx2    AVX2, FMA, F16C, BMI2
//   kAvx512  in addition F, BW, VL, DQ, VBMI, VNNI, BITALG, VPOPCNTDQ, GFNI (Ice Lake, Zen 4)
bool IsaSupported(Isa isa);

}  // namespace packtrain
