// Aim: attention over pages equals softmax(q k) v in double, dense and over a selection, for every
// cache type within its rounding.

#include "worker/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "worker/kernels/cpu/isa.h"
#include "worker/ops/philox.h"

namespace packtrain {
namespace {

constexpr int kPositions = 150;  // three pages, the last not full
constexpr int kKeyDim = 40, kValueDim = 24, kHeads = 3;

float Value(uint32_t position, uint32_t i, uint32_t stream) {
  return static_cast<float>(Philox4x32({position, i, stream, 0}, 3)[0]) * 0x1p-31F - 1;
}

class AttentionTest : public testing::Test {
 protected:
  // Key head 1 of 2 holds what is read; head 0 something else.
  void Fill(KvCacheType type) {
    keys_ = PagedRows(type, 4, 2, kKeyDim);
    values_ = PagedRows(type, 4, 2, kValueDim);
    for (uint32_t p = 0; p < kPositions; ++p) {
      const int32_t page = pages_[p / kPagePositions];
      for (int head = 0; head < 2; ++head) {
        std::vector<float> key(kKeyDim), value(kValueDim);
        for (uint32_t i = 0; i < kKeyDim; ++i) key[i] = head == 1 ? Value(p, i, 0) : 100.0F;
        for (uint32_t i = 0; i < kValueDim; ++i) value[i] = head == 1 ? Value(p, i, 1) : 100.0F;
        keys_.Write(page, static_cast<int>(p) % kPagePositions, head, key.data());
        values_.Write(page, static_cast<int>(p) % kPagePositions, head, value.data());
      }
    }
  }

  std::vector<float> Run(const std::vector<int32_t>* selected, std::string_view isa = "scalar") {
    std::vector<float> q(kHeads * kKeyDim), out(kHeads * kValueDim);
    for (uint32_t i = 0; i < q.size(); ++i) q[i] = Value(i, 0, 2);
    Attention::Query query;
    query.q = q.data();
    query.heads = kHeads;
    query.kv_head = 1;
    query.scale = 0.5F;
    query.pages = pages_;
    query.num_positions = kPositions;
    if (selected != nullptr) {
      query.selected = selected->data();
      query.num_selected = static_cast<int>(selected->size());
    }
    query.keys = &keys_;
    query.values = &values_;
    query.value_dim = kValueDim;
    query.out = out.data();
    Attention().Run(*SelectCpuKernels(isa).value()->vector, query);
    return out;
  }

  // Rows that see 1 .. kPositions positions, `together` of them at a time.
  std::vector<float> RunRows(int together, std::string_view isa) {
    std::vector<float> q(kPositions * kHeads * kKeyDim), out(kPositions * kHeads * kValueDim);
    for (uint32_t i = 0; i < q.size(); ++i) q[i] = Value(i, 0, 2);
    for (int row = 0; row < kPositions; row += together) {
      const auto at = static_cast<size_t>(row);
      Attention::Query query;
      query.q = q.data() + at * kHeads * kKeyDim;
      query.q_stride = kHeads * kKeyDim;
      query.rows = std::min(together, kPositions - row);
      query.heads = kHeads;
      query.kv_head = 1;
      query.scale = 0.5F;
      query.pages = pages_;
      query.num_positions = row + 1;
      query.keys = &keys_;
      query.values = &values_;
      query.value_dim = kValueDim;
      query.out = out.data() + at * kHeads * kValueDim;
      query.out_stride = kHeads * kValueDim;
      Attention().Run(*SelectCpuKernels(isa).value()->vector, query);
    }
    return out;
  }

  static std::vector<double> Wanted(const std::vector<int32_t>& positions) {
    std::vector<double> out(kHeads * kValueDim);
    for (uint32_t h = 0; h < kHeads; ++h) {
      double sum = 0;
      for (int32_t p : positions) {
        double score = 0;
        for (uint32_t i = 0; i < kKeyDim; ++i) {
          score += double{Value(h * kKeyDim + i, 0, 2)} * Value(static_cast<uint32_t>(p), i, 0);
        }
        const double weight = std::exp(0.5 * score);
        sum += weight;
        for (uint32_t i = 0; i < kValueDim; ++i) {
          out[h * kValueDim + i] += weight * Value(static_cast<uint32_t>(p), i, 1);
        }
      }
      for (uint32_t i = 0; i < kValueDim; ++i) out[h * kValueDim + i] /= sum;
    }
    return out;
  }

  std::vector<int32_t> pages_ = {2, 0, 3};
  PagedRows keys_, values_;
};

std::vector<int32_t> AllPositions() {
  std::vector<int32_t> all;
  for (int32_t p = 0; p < kPositions; ++p) all.push_back(p);
  return all;
}

TEST_F(AttentionTest, EqualsSoftmaxInDouble) {
  // Relative rounding of a stored value, with some room for the softmax to spread it.
  const std::pair<KvCacheType, double> cases[] = {{KvCacheType::kF32, 1e-6},
                                                  {KvCacheType::kF16, 2e-3},
                                                  {KvCacheType::kQ8_0, 2e-2},
                                                  {KvCacheType::kQ4_1, 2e-1}};
  for (const auto& [type, tolerance] : cases) {
    Fill(type);
    const std::vector<float> out = Run(nullptr);
    const std::vector<double> wanted = Wanted(AllPositions());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_NEAR(out[i], wanted[i], tolerance) << "type " << static_cast<int>(type);
    }
  }
}

TEST_F(AttentionTest, ASelectionIsAllThatIsSeen) {
  Fill(KvCacheType::kF32);
  const std::vector<int32_t> selected = {0, 3, 63, 64, 130, 149};
  const std::vector<float> out = Run(&selected);
  const std::vector<double> wanted = Wanted(selected);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], wanted[i], 1e-6);
}

TEST_F(AttentionTest, SelectingEverythingIsDenseBitForBit) {
  Fill(KvCacheType::kQ8_0);
  const std::vector<int32_t> all = AllPositions();
  EXPECT_EQ(Run(&all), Run(nullptr));
}

TEST_F(AttentionTest, RowsTogetherGetWhatEachGetsAloneOnEveryIsa) {
  Fill(KvCacheType::kF16);
  for (const Isa variant : kAllIsas) {
    if (!IsaSupported(variant)) continue;
    const std::string_view isa = IsaName(variant);
    const std::vector<float> alone = RunRows(1, isa);
    const std::vector<double> last = Wanted(AllPositions());
    for (int together : {2, 5, 64, int{kPositions}})
      EXPECT_EQ(RunRows(together, isa), alone) << isa;
    const std::vector<float> same = Run(nullptr, isa);
    for (size_t i = 0; i < same.size(); ++i) EXPECT_NEAR(same[i], last[i], 2e-3) << isa;
  }
}

}  // namespace
}  // namespace packtrain
