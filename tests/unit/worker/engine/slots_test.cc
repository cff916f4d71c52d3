// What a stage remembers of a slot is cut, begun anew and refused as steps say.

#include "worker/engine/slots.h"

#include <gtest/gtest.h>

namespace packtrain {
namespace {

StepSequence Begin(std::vector<TokenId> history, std::vector<int32_t> pages) {
  StepSequence s;
  s.begin.emplace();
  s.start = static_cast<int32_t>(history.size());
  s.begin->history = std::move(history);
  s.tokens = {1};
  s.pages = std::move(pages);
  return s;
}

TEST(SlotTableTest, ASlotThatNoSequenceBeganIsRefused) {
  SlotTable slots(2);
  StepSequence s;
  s.slot = 1;
  s.tokens = {1};
  s.pages = {0};
  EXPECT_EQ(slots.Apply(s).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SlotTableTest, BeginningTakesHistoryAndPagesAndForgetsWhatWas) {
  SlotTable slots(1);
  ASSERT_TRUE(slots.Apply(Begin({9, 8, 7}, {5})).ok());
  slots[0].sampled_step = 4;
  ASSERT_TRUE(slots.Apply(Begin({1, 2}, {3})).ok());
  EXPECT_EQ(slots[0].ids, (std::vector<TokenId>{1, 2}));
  EXPECT_EQ(slots[0].pages, (std::vector<int32_t>{3}));
  EXPECT_EQ(slots[0].sampled_step, 0u);
}

TEST(SlotTableTest, AStepCutsIdsAndPageTableToWhereItStarts) {
  SlotTable slots(1);
  ASSERT_TRUE(slots.Apply(Begin(std::vector<TokenId>(100, 6), {4, 5})).ok());
  StepSequence s;
  s.start = 64;
  s.tokens = {2};
  s.first_page = 1;
  s.pages = {7};
  ASSERT_TRUE(slots.Apply(s).ok());
  EXPECT_EQ(slots[0].ids.size(), 64u);
  EXPECT_EQ(slots[0].pages, (std::vector<int32_t>{4, 7}));
}

TEST(SlotTableTest, GapsInPositionsOrPagesAreRefused) {
  SlotTable slots(1);
  ASSERT_TRUE(slots.Apply(Begin({9, 8}, {5})).ok());
  StepSequence s;
  s.tokens = {1};
  s.first_page = 1;
  s.start = 3;
  EXPECT_EQ(slots.Apply(s).code(), absl::StatusCode::kInvalidArgument);
  s.start = 2;
  s.first_page = 2;
  EXPECT_EQ(slots.Apply(s).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SlotTableTest, PagesThatDoNotCoverTheStepAreRefused) {
  SlotTable slots(1);
  StepSequence s = Begin({}, {5});
  s.tokens.assign(65, 1);
  EXPECT_EQ(slots.Apply(s).code(), absl::StatusCode::kInvalidArgument);
  s.tokens.assign(64, 1);
  EXPECT_TRUE(slots.Apply(s).ok());
}

TEST(SlotTableTest, AFailedSlotStaysFailedUntilItBeginsAnew) {
  SlotTable slots(1);
  const StepSequence begin = Begin({}, {5});
  ASSERT_TRUE(slots.Apply(begin).ok());
  slots.Fail({1, {begin}}, absl::UnavailableError("gone"));
  StepSequence next = begin;
  next.begin.reset();
  next.pages.clear();
  next.first_page = 1;
  EXPECT_EQ(slots.Apply(next).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(slots.Apply(begin).ok());
}

}  // namespace
}  // namespace packtrain
