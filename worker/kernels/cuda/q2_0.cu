#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q2_0 {
  static constexpr TensorType kType = TensorType::kQ2_0;
  static constexpr int kWeights = 64, kBytes = 18, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[2];
    LoadWords<2>(b + 2 + 8 * sub, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t x = (((w[i / 4] >> (i % 4 * 8)) & 255) * 0x1001) & 0x000F000F;
      p->q[i] = (x * 0x41) & 0x03030303;
    }
    float d = LoadHalf(b);
    p->scale[0] = d;
    p->min[0] = -d;
  }
};

}  // namespace

extern const WeightKernels kQ2_0Kernels = MakeWeightKernels<Q2_0>();

}  // namespace packtrain::cuda
