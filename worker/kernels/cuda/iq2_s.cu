#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

constexpr uint32_t kPositive = 0x002B1908, kNegative = 0x00D5E7F8;  // 8, 25, 43 and negated

// Entry: the codes of eight weights, one a nibble.
__device__ uint32_t g_table[1024];

struct IQ2_S {
  static constexpr TensorType kType = TensorType::kIQ2_S;
  static constexpr int kWeights = 256, kBytes = 82, kTableWords = 1024;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w, signs, high = LoadU8(b + 66 + sub);
    LoadWords<1>(b + 2 + 4 * sub, &w);
    LoadWords<1>(b + 34 + 4 * sub, &signs);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t index = ((w >> 8 * l) & 255) | ((high >> 2 * l) & 3) << 8;
      uint32_t codes = table[index] + 4 * BitsToNibbles((signs >> 8 * l) & 255);
      p->q[2 * l] = static_cast<int>(Permute(kPositive, kNegative, codes));
      p->q[2 * l + 1] = static_cast<int>(Permute(kPositive, kNegative, codes >> 16));
    }
    float d = LoadHalf(b);
    uint32_t s = LoadU8(b + 74 + sub);
    p->scale[0] = d * (0.5f + static_cast<float>(s & 15)) * 0.25f;
    p->scale[1] = d * (0.5f + static_cast<float>(s >> 4)) * 0.25f;
  }
};

}  // namespace

extern const WeightKernels kIQ2_SKernels = MakeWeightKernels<IQ2_S>();

int UploadIQ2_S() {
  uint32_t table[1024];
  for (int i = 0; i < 1024; ++i) table[i] = NibblesOfCodes(kIq2SCodes[i]);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
