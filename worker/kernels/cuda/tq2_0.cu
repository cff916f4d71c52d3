#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct TQ2_0 {
  static constexpr TensorType kType = TensorType::kTQ2_0;
  static constexpr int kWeights = 256, kBytes = 66, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = true;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[8];
    LoadWords<8>(b + sub / 4 * 32, w);
    int shift = sub % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) p->q[i] = (w[i] >> shift) & 0x03030303;
    float d = LoadHalf(b + 64);
    p->scale[0] = d;
    p->min[0] = -d;
  }
};

}  // namespace

extern const WeightKernels kTQ2_0Kernels = MakeWeightKernels<TQ2_0>();

}  // namespace packtrain::cuda
