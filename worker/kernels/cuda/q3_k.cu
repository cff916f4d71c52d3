#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q3_K {
  static constexpr TensorType kType = TensorType::kQ3_K;
  static constexpr int kWeights = 256, kBytes = 110, kTableWords = 0;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 1;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[8], mask[8];
    LoadWords<8>(b + 32 + sub / 4 * 32, w);
    LoadWords<8>(b, mask);
    int shift = sub % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // A clear mask bit subtracts 4: the bits above the two are then all set.
      p->q[i] = ((w[i] >> shift) & 0x03030303) | (~(mask[i] >> sub) & 0x01010101) * 0xFC;
    }
    float d = LoadHalf(b + 108);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int i = 2 * sub + h;
      int scale = ((LoadU8(b + 96 + i % 8) >> (i / 8 * 4)) & 15) |
                  ((LoadU8(b + 104 + i % 4) >> (i / 4 * 2)) & 3) << 4;
      p->scale[h] = d * static_cast<float>(scale - 32);
    }
  }
};

}  // namespace

extern const WeightKernels kQ3_KKernels = MakeWeightKernels<Q3_K>();

}  // namespace packtrain::cuda
