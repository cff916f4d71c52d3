// Vector arithmetic without anything beyond the compiler's baseline.

#include <cstring>

#include "common/quant/codec.h"
#include "worker/kernels/cpu/vector_ops.h"

namespace packtrain {
namespace {

typedef float Reg __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
constexpr int kTileQueries = 2;

inline Reg MulAdd(Reg a, Reg b, Reg c) { return a * b + c; }
inline float Sum(Reg x) { return (x[0] + x[1]) + (x[2] + x[3]); }
inline float Larger(float a, float b) { return a > b ? a : b; }
inline float Max(Reg x) { return Larger(Larger(x[0], x[1]), Larger(x[2], x[3])); }
bool DecodeBlocks(TensorType, const uint8_t*, size_t, float*) { return false; }

#include "worker/kernels/cpu/vector_ops.inc"

}  // namespace

const VectorOps kVectorOpsScalar = kOps;

}  // namespace packtrain
