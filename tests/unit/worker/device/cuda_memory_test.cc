// The bill that plans are made with against what a CUDA stage would take. Needs nvcc, but no GPU:
// a stage plans its memory before it touches the device.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "common/model/bill.h"
#include "common/weights/gguf.h"
#include "worker/device/cuda/cuda_stage.h"

namespace packtrain {
namespace {

class NoExperts : public ExpertsClient {
 public:
  absl::Status Post(const ExpertsRequest&) override { return absl::InternalError("not run"); }
  absl::Status Await(float*) override { return absl::InternalError("not run"); }
};

struct Case {
  const char* synth;  // options of the generator
  int resident_first, resident_last;
  int max_tokens;
  int context;
  KvCacheType kv_cache;
};

class CudaMemoryTest : public testing::TestWithParam<Case> {};

TEST_P(CudaMemoryTest, AStageTakesWhatItsBillSays) {
  const Case& c = GetParam();
  const std::string path = testing::TempDir() + "cuda_memory_test.gguf";
  const std::string command = "python3 " PACKTRAIN_SOURCE_DIR "/tests/support/synth_gguf.py " +
                              path + " --sparse " + c.synth;
  ASSERT_EQ(std::system(command.c_str()), 0);
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto facts = ReadModelFacts(**file);
  ASSERT_TRUE(facts.ok()) << facts.status();
  const auto tensors = ModelTensors::Resolve(facts->config, **file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const MappedWeights weights(**file);
  const int layers = facts->config.num_layers;
  const DeploymentShape shape = {.kv_cache = c.kv_cache,
                                 .num_pages = c.context / 64,
                                 .num_slots = 4,
                                 .num_snapshots = 8,
                                 .max_tokens = c.max_tokens,
                                 .streamed_rows = 160};
  const StageSpec spec = {.last_layer = layers,
                          .embeds = true,
                          .has_head = true,
                          .kv_cache = c.kv_cache,
                          .num_pages = shape.num_pages,
                          .num_slots = shape.num_slots,
                          .num_snapshots = shape.num_snapshots,
                          .max_tokens = c.max_tokens,
                          .streamed_rows = shape.streamed_rows,
                          .resident_first = c.resident_first,
                          .resident_last = c.resident_last};
  NoExperts experts;
  CudaStageOptions options;
  options.experts = &experts;
  options.streamed = {{&weights, {{0, layers}}}};
  const auto memory = CudaStage::MemoryOf(facts->config, *tensors, weights, spec, options);
  std::filesystem::remove(path);
  ASSERT_TRUE(memory.ok()) << memory.status();

  const bool asks = c.resident_last < layers;
  const MemoryBill bill = StageBill(
      *facts, shape,
      {.device = DeviceKind::kCuda, .embeds = true, .has_head = true, .asks_experts = asks}, 0,
      layers, c.resident_first, c.resident_last);
  const auto near = [](uint64_t actual, uint64_t predicted, double share) {
    EXPECT_NEAR(static_cast<double>(actual), static_cast<double>(predicted),
                share * static_cast<double>(actual) + (1 << 20));
  };
  near(memory->weights, bill.weights(), 0.001);
  near(memory->kv, bill[BillItem::kKv] + bill[BillItem::kIndexKeys], 0.001);
  near(memory->recurrent, bill[BillItem::kRecurrent] + bill[BillItem::kSnapshots], 0.001);
  near(memory->buffers, bill[BillItem::kBuffers] + bill[BillItem::kStreaming], 0.02);
}

constexpr KvCacheType kF16 = KvCacheType::kF16, kQ8 = KvCacheType::kQ8_0;
INSTANTIATE_TEST_SUITE_P(
    Models, CudaMemoryTest,
    testing::Values(Case{"--layers 8 --mix iq2_m", 3, 8, 2048, 32768, kQ8},
                    Case{"--layers 8 --mix iq2_m", 3, 5, 8192, 32768, kQ8},
                    Case{"--layers 8 --mix ud_iq2_m", 3, 5, 2048, 131072, kQ8},
                    Case{"--layers 8 --mix ud_iq2_m", 3, 5, 512, 2048, kF16},
                    Case{"--layers 6 --mix q4", 3, 4, 128, 16384, kF16},
                    Case{"--layers 6 --mix q4", 3, 4, 64, 65536, kF16},
                    Case{"--arch qwen3.6-35b-a3b --layers 8 --mix q4", 0, 8, 2048, 32768, kF16},
                    Case{"--arch qwen3.6-35b-a3b --layers 8 --mix q4", 0, 3, 1024, 4096, kQ8},
                    Case{"--arch qwen3.6-35b-a3b --layers 8 --mix q8", 0, 8, 256, 262144, kF16}));

}  // namespace
}  // namespace packtrain
