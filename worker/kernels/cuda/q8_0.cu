#include "worker/kernels/cuda/weight_kernels.cuh"

namespace packtrain::cuda {
namespace {

struct Q8_0 {
  static constexpr TensorType kType = TensorType::kQ8_0;
  static constexpr int kWeights = 32, kBytes = 34, kTableWords = 0;
  static constexpr bool kHalves = false, kMin = false;
  static constexpr int kRowsAtOnce = 2;
  __device__ static const uint32_t* Table() { return nullptr; }
  __device__ static void Unpack(const uint8_t* b, int sub, const uint32_t* table, Piece* p) {
    LoadWords<8>(b + 2, reinterpret_cast<uint32_t*>(p->q));
    p->scale[0] = LoadHalf(b);
  }
};

}  // namespace

extern const WeightKernels kQ8_0Kernels = MakeWeightKernels<Q8_0>();

}  // namespace packtrain::cuda
