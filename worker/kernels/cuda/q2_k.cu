#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q2_K {
  static constexpr TensorType kType = TensorType::kQ2_K;
  static constexpr int kWeights = 256, kBytes = 84, kTableWords = 0;
  static constexpr bool kHalves = true, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[8];
    LoadAligned<8>(b + 16 + sub / 4 * 32, w);
    int shift = sub % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) p->q[i] = (w[i] >> shift) & 0x03030303;
    float d = LoadHalf(b + 80), dmin = LoadHalf(b + 82);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t s = LoadU8(b + 2 * sub + h);
      p->scale[h] = d * static_cast<float>(s & 15);
      p->min[h] = -(dmin * static_cast<float>(s >> 4));
    }
  }
};

}  // namespace

extern const WeightKernels kQ2_KKernels = MakeWeightKernels<Q2_K>();

}  // namespace packtrain::cuda
