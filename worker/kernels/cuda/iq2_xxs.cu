#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

constexpr uint32_t kPositive = 0x002B1908, kNegative = 0x00D5E7F8;  // 8, 25, 43 and negated

// Entry: the codes of eight weights, one a nibble.
__device__ uint32_t g_table[256];

struct IQ2_XXS {
  static constexpr TensorType kType = TensorType::kIQ2_XXS;
  static constexpr int kWeights = 256, kBytes = 66, kTableWords = 256;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[2];
    LoadWords<2>(b + 2 + 8 * sub, w);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t codes = table[(w[0] >> 8 * l) & 255] + 4 * EvenSignsToNibbles((w[1] >> 7 * l) & 127);
      p->q[2 * l] = static_cast<int>(Permute(kPositive, kNegative, codes));
      p->q[2 * l + 1] = static_cast<int>(Permute(kPositive, kNegative, codes >> 16));
    }
    p->scale[0] = LoadHalf(b) * (0.5f + static_cast<float>(w[1] >> 28)) * 0.25f;
  }
};

}  // namespace

extern const WeightKernels kIQ2_XXSKernels = MakeWeightKernels<IQ2_XXS>();

int UploadIQ2_XXS() {
  uint32_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = NibblesOfCodes(kIq2XxsCodes[i]);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
