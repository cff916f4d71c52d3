#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q1_0 {
  static constexpr TensorType kType = TensorType::kQ1_0;
  static constexpr int kWeights = 128, kBytes = 18, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t bits;
    LoadWords<1>(b + 2 + 4 * sub, &bits);
#pragma unroll
    for (int i = 0; i < 8; ++i) p->q[i] = BitsToBytes(bits >> 4 * i);
    float d = LoadHalf(b);
    p->scale[0] = 2 * d;
    p->min[0] = -d;
  }
};

}  // namespace

extern const WeightKernels kQ1_0Kernels = MakeWeightKernels<Q1_0>();

}  // namespace packtrain::cuda
