#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q5_1 {
  static constexpr TensorType kType = TensorType::kQ5_1;
  static constexpr int kWeights = 32, kBytes = 24, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[4], fifth;
    LoadWords<4>(b + 8, w);
    LoadWords<1>(b + 4, &fifth);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p->q[i] = (w[i] & 0x0F0F0F0F) | BitsToBytes(fifth >> 4 * i) << 4;
      p->q[4 + i] = ((w[i] >> 4) & 0x0F0F0F0F) | BitsToBytes(fifth >> (16 + 4 * i)) << 4;
    }
    p->scale[0] = LoadHalf(b);
    p->min[0] = LoadHalf(b + 2);
  }
};

}  // namespace

extern const WeightKernels kQ5_1Kernels = MakeWeightKernels<Q5_1>();

}  // namespace packtrain::cuda
