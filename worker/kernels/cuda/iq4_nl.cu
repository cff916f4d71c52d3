#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
constexpr ByteTable16 kIq4Nl = {{0xBFAD9881, 0xF6EADDCF, 0x26190D01, 0x71594535}};

struct IQ4_NL {
  static constexpr TensorType kType = TensorType::kIQ4_NL;
  static constexpr int kWeights = 32, kBytes = 18, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[4];
    LoadWords<4>(b + 2, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) Lookup16(kIq4Nl, w[i], &p->q[i], &p->q[4 + i]);
    p->scale[0] = LoadHalf(b);
  }
};

}  // namespace

extern const WeightKernels kIQ4_NLKernels = MakeWeightKernels<IQ4_NL>();

}  // namespace packtrain::cuda
