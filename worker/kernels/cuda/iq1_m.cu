#include "common/quant/codebooks.h"
#include "worker/kernels/cuda/codebook.cuh"
#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

// 8 * (-1, 0, 1) + 1, and the same - 1: eight times (grid + delta).
constexpr uint32_t kPlus = 0x000901F9, kMinus = 0x0007FFF7;

// Entry: the codes of eight weights, one a nibble.
__device__ uint32_t g_table[2048];

struct IQ1_M {
  static constexpr TensorType kType = TensorType::kIQ1_M;
  static constexpr int kWeights = 256, kBytes = 56, kTableWords = 2048;
  static constexpr bool kHalves = true, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return g_table; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    uint32_t w, high = LoadU16(b + 32 + 2 * sub);
    LoadWords<1>(b + 4 * sub, &w);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t h = high >> 4 * l;
      uint32_t codes = table[((w >> 8 * l) & 255) | (h & 7) << 8] | ((h >> 3) & 1) * 0x44444444;
      p->q[2 * l] = static_cast<int>(Permute(kPlus, kMinus, codes));
      p->q[2 * l + 1] = static_cast<int>(Permute(kPlus, kMinus, codes >> 16));
    }
    uint32_t d = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) d |= (LoadU16(b + 48 + 2 * i) >> 12) << 4 * i;
    uint32_t s = LoadU16(b + 48 + sub / 2 * 2) >> (sub % 2 * 6);
    p->scale[0] = HalfBits(d) * static_cast<float>(2 * (s & 7) + 1) * 0.125f;
    p->scale[1] = HalfBits(d) * static_cast<float>(2 * ((s >> 3) & 7) + 1) * 0.125f;
  }
};

}  // namespace

extern const WeightKernels kIQ1_MKernels = MakeWeightKernels<IQ1_M>();

int UploadIQ1_M() {
  uint32_t table[2048];
  for (int i = 0; i < 2048; ++i) table[i] = NibblesOfCodes(kIq1SCodes[i]);
  return static_cast<int>(cudaMemcpyToSymbol(g_table, table, sizeof(table)));
}

}  // namespace packtrain::cuda
