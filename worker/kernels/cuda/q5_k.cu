#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q5_K {
  static constexpr TensorType kType = TensorType::kQ5_K;
  static constexpr int kWeights = 256, kBytes = 176, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[8], high[8];
    LoadVectors<8>(b + 48 + 32 * (sub / 2), w);
    LoadVectors<8>(b + 16, high);
    int shift = sub % 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      p->q[i] = ((w[i] >> shift) & 0x0F0F0F0F) | ((high[i] >> sub) & 0x01010101) << 4;
    }
    // d, dmin and the twelve bytes of scales are the block's first 16.
    uint4 head = __ldg(reinterpret_cast<const uint4*>(b));
    uint32_t scales, mins;
    if (sub < 4) {
      scales = head.y & 0x3F3F3F3F;
      mins = head.z & 0x3F3F3F3F;
    } else {
      scales = (head.w & 0x0F0F0F0F) | (head.y >> 2 & 0x30303030);
      mins = (head.w >> 4 & 0x0F0F0F0F) | (head.z >> 2 & 0x30303030);
    }
    int shift8 = sub % 4 * 8;
    p->scale[0] = HalfBits(head.x & 0xFFFF) * static_cast<float>(scales >> shift8 & 255);
    p->min[0] = -(HalfBits(head.x >> 16) * static_cast<float>(mins >> shift8 & 255));
  }
};

}  // namespace

extern const WeightKernels kQ5_KKernels = MakeWeightKernels<Q5_K>();

}  // namespace packtrain::cuda
