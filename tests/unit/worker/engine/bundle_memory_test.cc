#include "worker/engine/bundle_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <map>

#include "worker/engine/bundle.h"

namespace packtrain {
namespace {

constexpr uintptr_t kPage = 4096;

TEST(BundleMemoryTest, LargeTensorsArePinnedInPagesOfTheirOwn) {
  std::map<uintptr_t, size_t> pinned;
  SetBundlePinning(
      {.pin =
           [&](void* data, size_t bytes) {
             const auto at = reinterpret_cast<uintptr_t>(data);
             EXPECT_EQ(at % kPage, 0U);
             EXPECT_EQ(bytes % kPage, 0U);
             const auto next = pinned.lower_bound(at);
             EXPECT_TRUE(next == pinned.end() || at + bytes <= next->first);
             EXPECT_TRUE(next == pinned.begin() ||
                         std::prev(next)->first + std::prev(next)->second <= at);
             pinned[at] = bytes;
           },
       .unpin =
           [&](void* data) { EXPECT_EQ(pinned.erase(reinterpret_cast<uintptr_t>(data)), 1U); }});
  {
    Bundle bundle;
    bundle.Shape(0, "small", ElementType::kU8, 1, 100);
    EXPECT_TRUE(pinned.empty());
    std::byte* first = bundle.Shape(0, "large", ElementType::kU8, 3, 10001)->data.data();
    ASSERT_EQ(pinned.count(reinterpret_cast<uintptr_t>(first)), 1U);
    EXPECT_GE(pinned.begin()->second, 30003U);
    bundle.Shape(0, "large", ElementType::kU8, 1, 20000);
    EXPECT_EQ(bundle.tensors[0].data.data(), first) << "memory is kept";
    bundle.Shape(1, "other", ElementType::kF32, 64, 100);
    EXPECT_EQ(pinned.size(), 2U);
    const Bundle copy = bundle;
    EXPECT_EQ(pinned.size(), 4U);
  }
  EXPECT_TRUE(pinned.empty());
  SetBundlePinning({});
}

}  // namespace
}  // namespace packtrain
