#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// Entry: four magnitudes.
__device__ uint32_t g_table[512];

struct IQ3_S {
  static constexpr TensorType kType = TensorType::kIQ3_S;
  static constexpr int kWeights = 256, kBytes = 110, kTableWords = 512;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[2], signs, high = LoadU8(b + 66 + sub);
    LoadWords<2>(b + 2 + 8 * sub, w);
    LoadWords<1>(b + 74 + 4 * sub, &signs);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t index = (w[l / 2] >> (l % 2 * 16)) & 0xFFFF;
      p->q[2 * l] = Negate(table[(index & 255) | ((high >> 2 * l) & 1) << 8], signs >> 8 * l);
      p->q[2 * l + 1] =
          Negate(table[(index >> 8) | ((high >> (2 * l + 1)) & 1) << 8], signs >> (8 * l + 4));
    }
    uint32_t s = (LoadU8(b + 106 + sub / 2) >> (sub % 2 * 4)) & 15;
    p->scale[0] = LoadHalf(b) * static_cast<float>(1 + 2 * s);
  }
};

}  // namespace

extern const WeightKernels kIQ3_SKernels = MakeWeightKernels<IQ3_S>();

int UploadIQ3_S() {
  uint32_t table[512];
  for (int i = 0; i < 512; ++i) table[i] = BytesOfCodes(kIq3SCodes[i], kIq3SLevels);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
