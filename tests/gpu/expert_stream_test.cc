// Aim: what a stage acquires is what lies in host memory, in order, also where gate and up share a
// tensor and when the ring wraps. Method: random bytes as weights of four layers, read back from
// the ring in two ubatches.

#include "worker/device/cuda/expert_stream.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>

namespace packtrain {
namespace {

constexpr size_t kExperts = 6, kDim = 64, kHidden = 96, kLayers = 4;
constexpr size_t kMappedBytes = size_t{1} << 20;

// Gate and up of a layer in one tensor: each expert's gate rows, then its up rows.
class ExpertStreamTest : public testing::Test {
 protected:
  void SetUp() override {
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, kMappedBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory_, MAP_FAILED);
    std::mt19937 random(1);
    for (size_t i = 0; i < kMappedBytes; ++i) memory_[i] = static_cast<std::byte>(random());
    config_.hidden_dim = kHidden;
    const std::byte* at = memory_ + 192;
    for (ExpertWeights& layer : layers_) {
      layer.expert_dim = kDim;
      layer.row_stride = 2 * kDim;
      layer.num_experts = kExperts;
      layer.gate = {TensorType::kQ8_0, (2 * kExperts - 1) * kDim, kHidden, at};
      layer.up = layer.gate;
      layer.up.data += kDim * layer.gate.row_bytes();
      at += 2 * kExperts * kDim * layer.gate.row_bytes();
      layer.down = {TensorType::kQ8_0, kExperts * kHidden, kDim, at};
      at += layer.down.bytes();
    }
    ASSERT_LE(at, memory_ + kMappedBytes);
  }
  ~ExpertStreamTest() override { munmap(memory_, kMappedBytes); }

  static std::vector<std::byte> Dense(const MatrixView& view, size_t rows, size_t row_stride) {
    std::vector<std::byte> out;
    for (size_t e = 0; e < kExperts; ++e) {
      const std::byte* from = view.data + e * row_stride * view.row_bytes();
      out.insert(out.end(), from, from + rows * view.row_bytes());
    }
    return out;
  }

  ModelConfig config_;
  std::byte* memory_ = nullptr;
  ExpertWeights layers_[kLayers];
};

TEST_F(ExpertStreamTest, PiecesArriveInOrderThroughAWrappingRing) {
  CudaRun run(config_);
  ASSERT_EQ(cudaStreamCreate(&run.stream), cudaSuccess);
  {
    ExpertStream stream(config_);
    for (size_t i = 0; i < kLayers; ++i) stream.Add(static_cast<int>(i), layers_[i]);
    DevicePlan ring;
    stream.Plan(256, &ring);
    ASSERT_TRUE(ring.Allocate("the ring", true).ok());
    const absl::Status opened = stream.Open();
    ASSERT_TRUE(opened.ok()) << opened.ToString();
    for (int ubatch = 0; ubatch < 2; ++ubatch) {
      stream.Begin(&run);
      for (const ExpertWeights& layer : layers_) {
        for (const std::vector<std::byte>& wanted :
             {Dense(layer.gate, kDim, 2 * kDim), Dense(layer.up, kDim, 2 * kDim),
              Dense(layer.down, kHidden, kHidden)}) {
          const ExpertStream::Piece piece = stream.Acquire(&run);
          EXPECT_EQ(piece.first, 0);
          ASSERT_EQ(piece.count, static_cast<int>(kExperts));
          std::vector<std::byte> seen(wanted.size());
          ASSERT_EQ(cudaMemcpyAsync(seen.data(), piece.data, seen.size(), cudaMemcpyDeviceToHost,
                                    run.stream),
                    cudaSuccess);
          ASSERT_EQ(cudaStreamSynchronize(run.stream), cudaSuccess);
          EXPECT_EQ(seen, wanted);
          stream.Release(&run);
        }
      }
    }
    EXPECT_TRUE(run.status.ok()) << run.status.ToString();
  }
  EXPECT_EQ(cudaStreamDestroy(run.stream), cudaSuccess);
}

TEST_F(ExpertStreamTest, LayersWithoutATensorCoreProductAreLeftOut) {
  ExpertStream stream(config_);
  layers_[0].down.type = TensorType::kF32;
  stream.Add(0, layers_[0]);
  EXPECT_TRUE(stream.empty());
  EXPECT_EQ(stream.Find(0), nullptr);
}

}  // namespace
}  // namespace packtrain
