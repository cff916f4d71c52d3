#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q6_K {
  static constexpr TensorType kType = TensorType::kQ6_K;
  static constexpr int kWeights = 256, kBytes = 210, kTableWords = 0;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 1;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t low[8], high[8];
    int n = sub / 4, k = sub % 4;
    LoadWords<8>(b + 64 * n + 32 * (k % 2), low);
    LoadWords<8>(b + 128 + 32 * n, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t v = ((low[i] >> (k / 2 * 4)) & 0x0F0F0F0F) | ((high[i] >> 2 * k) & 0x03030303) << 4;
      // v - 32 in each byte: bit 5 clear means negative.
      p->q[i] = (v & 0x1F1F1F1F) | (~v & 0x20202020) * 7;
    }
    float d = LoadHalf(b + 208);
    p->scale[0] = d * static_cast<float>(static_cast<int8_t>(LoadU8(b + 192 + 2 * sub)));
    p->scale[1] = d * static_cast<float>(static_cast<int8_t>(LoadU8(b + 193 + 2 * sub)));
  }
};

}  // namespace

extern const WeightKernels kQ6_KKernels = MakeWeightKernels<Q6_K>();

}  // namespace packtrain::cuda
