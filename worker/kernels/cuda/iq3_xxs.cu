#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// Entry: four magnitudes.
__device__ uint32_t g_table[256];

struct IQ3_XXS {
  static constexpr TensorType kType = TensorType::kIQ3_XXS;
  static constexpr int kWeights = 256, kBytes = 98, kTableWords = 256;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w[2], word;
    LoadWords<2>(b + 2 + 8 * sub, w);
    LoadWords<1>(b + 66 + 4 * sub, &word);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t index = (w[l / 2] >> (l % 2 * 16)) & 0xFFFF;
      uint32_t signs = EvenSigns((word >> 7 * l) & 127);
      p->q[2 * l] = Negate(table[index & 255], signs);
      p->q[2 * l + 1] = Negate(table[index >> 8], signs >> 4);
    }
    p->scale[0] = LoadHalf(b) * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
  }
};

}  // namespace

extern const WeightKernels kIQ3_XXSKernels = MakeWeightKernels<IQ3_XXS>();

int UploadIQ3_XXS() {
  uint32_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = BytesOfCodes(kIq3XxsCodes[i], kIq3XxsLevels);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
