#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// Twice the E2M1 values: 0 1 2 3 4 6 8 12, and the same negated.
constexpr ByteTable16 kFp4 = {{0x03020100, 0x0C080604, 0xFDFEFF00, 0xF4F8FAFC}};

__device__ inline float UnsignedE4M3(uint32_t bits) {
  int e = (bits >> 3) & 15, m = bits & 7;
  if (bits == 0 || bits == 0x7F) return 0;
  if (e == 0) return static_cast<float>(m) * 0x1p-9f;
  return (1 + static_cast<float>(m) * 0.125f) *
         __uint_as_float(static_cast<uint32_t>(e + 120) << 23);
}

struct NVFP4 {
  static constexpr TensorType kType = TensorType::kNVFP4;
  static constexpr int kWeights = 64, kBytes = 36, kTableWords = 0;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[4];
    LoadWords<4>(b + 4 + 16 * sub, w);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Lookup16(kFp4, w[2 * h], &p->q[4 * h], &p->q[4 * h + 2]);
      Lookup16(kFp4, w[2 * h + 1], &p->q[4 * h + 1], &p->q[4 * h + 3]);
      p->scale[h] = UnsignedE4M3(LoadU8(b + 2 * sub + h)) * 0.5f;
    }
  }
};

}  // namespace

extern const WeightKernels kNVFP4Kernels = MakeWeightKernels<NVFP4>();

}  // namespace packtrain::cuda
