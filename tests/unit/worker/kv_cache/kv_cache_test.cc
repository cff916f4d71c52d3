#include "worker/kv_cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace packtrain {
namespace {

std::vector<float> Row(int dim, int seed) {
  std::vector<float> row;
  for (int i = 0; i < dim; ++i) row.push_back(std::sin(static_cast<float>(seed * 37 + i)));
  return row;
}

TEST(PagedRowsTest, RowsComeBackWithinTheTypesStep) {
  // For values in [-1, 1]: half a step, and what the f16 scale (and minimum) of a block rounds.
  const std::pair<KvCacheType, float> types[] = {{KvCacheType::kF32, 0.0F},
                                                 {KvCacheType::kF16, 0x1p-12F},
                                                 {KvCacheType::kQ8_0, 0.5F / 127 + 0x1p-11F},
                                                 {KvCacheType::kQ4_1, 1.0F / 15 + 3 * 0x1p-11F}};
  for (const auto& [type, step] : types) {
    for (int dim : {32, 64, 40, 7}) {  // the last two are not whole blocks
      PagedRows rows(type, 3, 2, dim);
      EXPECT_EQ(rows.bytes(), 3 * kPagePositions * 2 * KvBytes(type, static_cast<size_t>(dim)));
      for (int offset = 0; offset < kPagePositions; ++offset) {
        for (int head : {1, 0}) rows.Write(1, offset, head, Row(dim, 2 * offset + head).data());
      }
      std::vector<float> out(static_cast<size_t>(20 * dim));
      for (int head : {0, 1}) {
        rows.Read(1, 44, 20, head, out.data());
        for (int i = 0; i < 20; ++i) {
          const std::vector<float> wanted = Row(dim, 2 * (44 + i) + head);
          for (int j = 0; j < dim; ++j) {
            ASSERT_NEAR(out[static_cast<size_t>(i * dim + j)], wanted[static_cast<size_t>(j)], step)
                << "type " << static_cast<int>(type) << " dim " << dim;
          }
        }
      }
    }
  }
}

TEST(PagedRowsTest, CopiedPagesGoTheirOwnWays) {
  PagedRows rows(KvCacheType::kQ8_0, 2, 1, 32);
  for (int offset = 0; offset < kPagePositions; ++offset)
    rows.Write(0, offset, 0, Row(32, offset).data());
  rows.CopyPage(0, 1);
  std::vector<float> before(32), after(32);
  rows.Read(0, 63, 1, 0, before.data());
  rows.Write(0, 63, 0, Row(32, 99).data());
  rows.Read(1, 63, 1, 0, after.data());
  EXPECT_EQ(after, before);
}

TEST(RecurrentStateTest, SnapshotsKeepWholeSlots) {
  ModelConfig config;
  config.delta_net = {.num_key_heads = 1, .num_value_heads = 2, .head_dim = 3, .conv_kernel = 4};
  const LayerConfig delta = {.attention = AttentionKind::kGatedDeltaNet};
  const LayerConfig full = {.attention = AttentionKind::kGqa};
  config.layers = {full, delta, full, delta};
  RecurrentState state(config, 1, 4, 2, 1);
  EXPECT_EQ(state.bytes(), 3 * 2 * RecurrentBytes(config, delta));
  const auto fill = [&](int slot, float value) {
    for (int layer : {1, 3}) {
      std::fill_n(state.conv(slot, layer), 3 * 12, value + static_cast<float>(layer));
      std::fill_n(state.state(slot, layer), 2 * 9, value - static_cast<float>(layer));
    }
  };
  fill(0, 10);
  fill(1, 20);
  state.Save(0, 0);
  fill(0, 30);
  state.Restore(0, 1);
  for (int layer : {1, 3}) {
    EXPECT_EQ(state.conv(1, layer)[35], 10 + static_cast<float>(layer));
    EXPECT_EQ(state.state(1, layer)[17], 10 - static_cast<float>(layer));
    EXPECT_EQ(state.conv(0, layer)[0], 30 + static_cast<float>(layer));
  }
  state.Reset(0);
  EXPECT_EQ(state.conv(0, 3)[0], 0.0F);
  EXPECT_EQ(state.state(0, 3)[17], 0.0F);
  EXPECT_EQ(state.state(1, 3)[17], 7.0F);
}

}  // namespace
}  // namespace packtrain
