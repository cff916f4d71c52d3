#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q4_K {
  static constexpr TensorType kType = TensorType::kQ4_K;
  static constexpr int kWeights = 256, kBytes = 144, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[8];
    LoadWords<8>(b + 16 + 32 * (sub / 2), w);
    int shift = sub % 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) p->q[i] = (w[i] >> shift) & 0x0F0F0F0F;
    const uint8_t* s = b + 4;
    uint32_t scale, min;
    if (sub < 4) {
      scale = s[sub] & 63;
      min = s[sub + 4] & 63;
    } else {
      scale = (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4;
      min = (s[sub + 4] >> 4) | (s[sub] >> 6) << 4;
    }
    p->scale[0] = LoadHalf(b) * static_cast<float>(scale);
    p->min[0] = -(LoadHalf(b + 2) * static_cast<float>(min));
  }
};

}  // namespace

extern const WeightKernels kQ4_KKernels = MakeWeightKernels<Q4_K>();

}  // namespace packtrain::cuda
