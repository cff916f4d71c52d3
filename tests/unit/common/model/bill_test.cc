// What a stage's links take of a card.

#include "common/model/bill.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

uint64_t Transport(bool receives, bool sends, bool nccl, bool on_card = true) {
  ModelFacts model;
  model.config.hidden_dim = 1024;
  model.config.vocab_size = 1000;
  const DeploymentShape shape = {.max_tokens = 4096};  // bundles of 16 MiB
  const StageDuties duties = {.device = DeviceKind::kCuda,
                              .embeds = !receives,
                              .has_head = !sends,
                              .receives = receives,
                              .sends = sends,
                              .nccl = nccl};
  const MemoryBill bill =
      on_card ? StageBaseBill(model, shape, duties) : StageHostBill(model, shape, duties);
  return bill[BillItem::kTransport];
}

TEST(BillTest, LinksTakeOfACardWhatNcclTakes) {
  // As measured: 440 MiB with one link, and its bundles.
  EXPECT_EQ(Transport(false, true, true), (440 + 3 * 16) * kMiB);
  EXPECT_EQ(Transport(true, false, true), (440 + 16) * kMiB);
  // Its code is there once.
  EXPECT_EQ(Transport(true, true, true), (440 + 64 + 4 * 16) * kMiB);
  // Stages on one card, and one alone: bundles stay in RAM, or there are none.
  EXPECT_EQ(Transport(true, true, false), 0u);
  EXPECT_EQ(Transport(false, false, true), 0u);
}

// A sender keeps three, a receiver one.
TEST(BillTest, LinksTakeOfRamTheBundlesOfBothEnds) {
  EXPECT_EQ(Transport(false, true, false, false), 3 * 16 * kMiB);
  EXPECT_EQ(Transport(true, false, false, false), 16 * kMiB);
  EXPECT_EQ(Transport(true, true, false, false), 4 * 16 * kMiB);
  EXPECT_EQ(Transport(false, false, false, false), 0u);
}

}  // namespace
}  // namespace packtrain
