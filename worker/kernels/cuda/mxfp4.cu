#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// Twice the E2M1 values: 0 1 2 3 4 6 8 12, and the same negated.
constexpr ByteTable16 kFp4 = {{0x03020100, 0x0C080604, 0xFDFEFF00, 0xF4F8FAFC}};

struct MXFP4 {
  static constexpr TensorType kType = TensorType::kMXFP4;
  static constexpr int kWeights = 32, kBytes = 17, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[4];
    LoadWords<4>(b + 1, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) Lookup16(kFp4, w[i], &p->q[i], &p->q[4 + i]);
    // 2^(e - 128); the two smallest are subnormal.
    uint32_t e = LoadU8(b + 0);
    p->scale[0] = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  }
};

}  // namespace

extern const WeightKernels kMXFP4Kernels = MakeWeightKernels<MXFP4>();

}  // namespace packtrain::cuda
