#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// Digit n of a byte that holds five base-3 digits as a fraction of 256.
__device__ inline uint32_t Digit(uint32_t byte, int n) {
  constexpr uint32_t kPowers[5] = {1, 3, 9, 27, 81};
  return (((byte * kPowers[n]) & 255) * 3) >> 8;
}

struct TQ1_0 {
  static constexpr TensorType kType = TensorType::kTQ1_0;
  static constexpr int kWeights = 256, kBytes = 54, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t word = 0;
      for (int k = 0; k < 4; ++k) {
        int w = 32 * sub + 4 * i + k, byte, n;
        if (w < 160) {
          byte = w % 32, n = w / 32;
        } else if (w < 240) {
          byte = 32 + (w - 160) % 16, n = (w - 160) / 16;
        } else {
          byte = 48 + (w - 240) % 4, n = (w - 240) / 4;
        }
        word |= Digit(LoadU8(b + byte), n) << 8 * k;
      }
      p->q[i] = static_cast<int>(word);
    }
    float d = LoadHalf(b + 52);
    p->scale[0] = d;
    p->min[0] = -d;
  }
};

}  // namespace

extern const WeightKernels kTQ1_0Kernels = MakeWeightKernels<TQ1_0>();

}  // namespace packtrain::cuda
