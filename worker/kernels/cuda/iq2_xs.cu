#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

constexpr uint32_t kPositive = 0x002B1908, kNegative = 0x00D5E7F8;  // 8, 25, 43 and negated

// Entry: the codes of eight weights, one a nibble.
__device__ uint32_t g_table[512];

struct IQ2_XS {
  static constexpr TensorType kType = TensorType::kIQ2_XS;
  static constexpr int kWeights = 256, kBytes = 74, kTableWords = 512;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[2];
    LoadWords<2>(b + 2 + 8 * sub, w);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t v = (w[l / 2] >> (l % 2 * 16)) & 0xFFFF;
      uint32_t codes = table[v & 511] + 4 * EvenSignsToNibbles(v >> 9);
      p->q[2 * l] = static_cast<int>(Permute(kPositive, kNegative, codes));
      p->q[2 * l + 1] = static_cast<int>(Permute(kPositive, kNegative, codes >> 16));
    }
    float d = LoadHalf(b);
    uint32_t s = LoadU8(b + 66 + sub);
    p->scale[0] = d * (0.5f + static_cast<float>(s & 15)) * 0.25f;
    p->scale[1] = d * (0.5f + static_cast<float>(s >> 4)) * 0.25f;
  }
};

}  // namespace

extern const WeightKernels kIQ2_XSKernels = MakeWeightKernels<IQ2_XS>();

int UploadIQ2_XS() {
  uint32_t table[512];
  for (int i = 0; i < 512; ++i) table[i] = NibblesOfCodes(kIq2XsCodes[i]);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
