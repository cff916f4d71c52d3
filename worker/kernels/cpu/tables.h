#pragma once

// The kernel of each weight type per instruction set; nullptr for types that are not weights.

#include "worker/kernels/cpu/kernels.h"

namespace packtrain {

const WeightKernel* ScalarWeightKernel(TensorType type);

}  // namespace packtrain
