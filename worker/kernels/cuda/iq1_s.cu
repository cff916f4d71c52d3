#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// 8 * (-1, 0, 1) + 1, and the same - 1: eight times (grid + delta).
constexpr uint32_t kPlus = 0x000901F9, kMinus = 0x0007FFF7;

// Entry: the codes of eight weights, one a nibble.
__device__ uint32_t g_table[2048];

struct IQ1_S {
  static constexpr TensorType kType = TensorType::kIQ1_S;
  static constexpr int kWeights = 256, kBytes = 50, kTableWords = 2048;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w, high = LoadU16(b + 34 + 2 * sub);
    LoadWords<1>(b + 2 + 4 * sub, &w);
    uint32_t delta = (high >> 15) * 0x44444444;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t index = ((w >> 8 * l) & 255) | ((high >> 3 * l) & 7) << 8;
      uint32_t codes = table[index] | delta;
      p->q[2 * l] = static_cast<int>(Permute(kPlus, kMinus, codes));
      p->q[2 * l + 1] = static_cast<int>(Permute(kPlus, kMinus, codes >> 16));
    }
    p->scale[0] = LoadHalf(b) * static_cast<float>(2 * ((high >> 12) & 7) + 1) * 0.125f;
  }
};

}  // namespace

extern const WeightKernels kIQ1_SKernels = MakeWeightKernels<IQ1_S>();

int UploadIQ1_S() {
  uint32_t table[2048];
  for (int i = 0; i < 2048; ++i) table[i] = NibblesOfCodes(kIq1SCodes[i]);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
