#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q5_0 {
  static constexpr TensorType kType = TensorType::kQ5_0;
  static constexpr int kWeights = 32, kBytes = 22, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[4], fifth;
    LoadWords<4>(b + 6, w);
    LoadWords<1>(b + 2, &fifth);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p->q[i] = (w[i] & 0x0F0F0F0F) | BitsToBytes(fifth >> 4 * i) << 4;
      p->q[4 + i] = ((w[i] >> 4) & 0x0F0F0F0F) | BitsToBytes(fifth >> (16 + 4 * i)) << 4;
    }
    float d = LoadHalf(b);
    p->scale[0] = d;
    p->min[0] = -16 * d;
  }
};

}  // namespace

extern const WeightKernels kQ5_0Kernels = MakeWeightKernels<Q5_0>();

}  // namespace packtrain::cuda
