// The tree of pages by token ids: what matches, what is evicted, when snapshots limit a match.

#include "coordinator/scheduler/prefix_cache.h"

#include <numeric>

#include "common/model/step.h"
#include "gtest/gtest.h"

namespace packtrain {
namespace {

std::vector<TokenId> Range(int first, int count) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::vector<TokenId> Join(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class PrefixCacheTest : public testing::Test {
 protected:
  // Computes `ids` in new pages, enters them and lets them go.
  std::vector<int32_t> Fill(PrefixCache* cache, const std::vector<TokenId>& ids) {
    std::vector<int32_t> pages;
    for (size_t i = 0; i < ids.size(); i += kPagePositions) {
      pages.push_back(cache->AllocatePage());
      EXPECT_GE(pages.back(), 0);
    }
    cache->Insert(ids, pages);
    for (int32_t page : pages) pool_.RemoveUser(page);
    EXPECT_TRUE(cache->CheckIntegrity().ok());
    return pages;
  }

  PagePool pool_{8};
};

TEST_F(PrefixCacheTest, AnEmptyCacheMatchesNothing) {
  PrefixCache cache(&pool_, 0);
  const PrefixMatch match = cache.Match(Range(0, 100), 99);
  EXPECT_EQ(match.length, 0);
  EXPECT_TRUE(match.pages.empty());
  EXPECT_EQ(match.copy_from, -1);
}

TEST_F(PrefixCacheTest, FullPagesAreSharedAndAPartialOneIsCopied) {
  PrefixCache cache(&pool_, 0);
  const std::vector<int32_t> pages = Fill(&cache, Range(0, 180));
  const PrefixMatch match = cache.Match(Range(0, 200), 199);
  EXPECT_EQ(match.length, 180);
  EXPECT_EQ(match.pages, std::vector<int32_t>({pages[0], pages[1]}));
  EXPECT_EQ(match.copy_from, pages[2]);
}

TEST_F(PrefixCacheTest, AMatchStopsAtTheLimitEvenWithinAFullPage) {
  PrefixCache cache(&pool_, 0);
  const std::vector<int32_t> pages = Fill(&cache, Range(0, 128));
  const PrefixMatch match = cache.Match(Range(0, 128), 127);
  EXPECT_EQ(match.length, 127);
  EXPECT_EQ(match.pages, std::vector<int32_t>({pages[0]}));
  EXPECT_EQ(match.copy_from, pages[1]);
}

TEST_F(PrefixCacheTest, AFewSharedPositionsOfAPageAreNotWorthACopy) {
  PrefixCache cache(&pool_, 0);
  Fill(&cache, Range(0, 128));
  EXPECT_EQ(cache.Match(Join(Range(0, 67), Range(500, 50)), 116).length, 64);
  EXPECT_EQ(cache.Match(Join(Range(0, 100), Range(500, 50)), 149).length, 100);
}

TEST_F(PrefixCacheTest, TheSiblingThatSharesMostIsCopied) {
  PrefixCache cache(&pool_, 0);
  Fill(&cache, Join(Range(0, 20), Range(300, 44)));
  const std::vector<int32_t> best = Fill(&cache, Join(Range(0, 40), Range(200, 24)));
  Fill(&cache, Join(Range(0, 30), Range(400, 34)));
  const PrefixMatch match = cache.Match(Join(Range(0, 50), Range(100, 30)), 79);
  EXPECT_EQ(match.length, 40);
  EXPECT_EQ(match.copy_from, best[0]);
}

TEST_F(PrefixCacheTest, AGrowingTailKeepsItsPage) {
  PrefixCache cache(&pool_, 0);
  const int32_t page = cache.AllocatePage();
  const std::vector<int32_t> pages = {page};
  cache.Insert(Range(0, 30), pages);
  cache.Insert(Range(0, 50), pages);
  EXPECT_EQ(cache.Match(Range(0, 64), 63).length, 50);
  pool_.RemoveUser(page);
  EXPECT_EQ(pool_.num_available(), 8);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

TEST_F(PrefixCacheTest, TheLeastRecentlyUsedLeafIsEvictedFirst) {
  PrefixCache cache(&pool_, 0);
  Fill(&cache, Range(0, 256));     // 4 pages
  Fill(&cache, Range(1000, 256));  // 4 more: all are taken
  cache.Match(Range(0, 256), 256);
  EXPECT_GE(cache.AllocatePage(), 0);
  EXPECT_EQ(cache.Match(Range(0, 256), 256).length, 256);
  EXPECT_EQ(cache.Match(Range(1000, 256), 256).length, 192);
}

TEST_F(PrefixCacheTest, PagesInUseAreNeverEvicted) {
  PrefixCache cache(&pool_, 0);
  const std::vector<int32_t> pages = Fill(&cache, Range(0, 512));
  for (int32_t page : pages) pool_.AddUser(page);
  EXPECT_EQ(cache.AllocatePage(), -1);
  pool_.RemoveUser(pages.back());
  EXPECT_EQ(cache.AllocatePage(), pages.back());
  EXPECT_EQ(cache.AllocatePage(), -1);
}

TEST_F(PrefixCacheTest, TheSameIdsComputedTwiceKeepOnePage) {
  PrefixCache cache(&pool_, 0);
  const std::vector<int32_t> first = Fill(&cache, Range(0, 64));
  Fill(&cache, Range(0, 64));
  EXPECT_EQ(pool_.num_idle(), 1);
  EXPECT_EQ(cache.Match(Range(0, 64), 64).pages, first);
}

TEST_F(PrefixCacheTest, ARecurrentModelReusesUpToTheLargestSnapshot) {
  PrefixCache cache(&pool_, 4);
  const std::vector<TokenId> ids = Range(0, 200);
  const std::vector<int32_t> pages = Fill(&cache, ids);
  EXPECT_EQ(cache.Match(ids, 199).length, 0);
  const int32_t early = cache.AllocateSnapshot();
  const int32_t late = cache.AllocateSnapshot();
  cache.AttachSnapshot(std::span(ids).first(64), early);
  cache.AttachSnapshot(std::span(ids).first(150), late);

  const PrefixMatch match = cache.Match(ids, 199);
  EXPECT_EQ(match.length, 150);
  EXPECT_EQ(match.snapshot, late);
  EXPECT_EQ(match.pages.size(), 2u);
  EXPECT_EQ(match.copy_from, pages[2]);

  const PrefixMatch parted = cache.Match(Join(Range(0, 140), Range(900, 60)), 199);
  EXPECT_EQ(parted.length, 64);
  EXPECT_EQ(parted.snapshot, early);
  EXPECT_EQ(parted.copy_from, -1);
}

TEST_F(PrefixCacheTest, ASnapshotInASideBranchIsFound) {
  PrefixCache cache(&pool_, 4);
  const std::vector<TokenId> main = Range(0, 128);
  const std::vector<TokenId> side = Join(Range(0, 100), Range(700, 28));
  Fill(&cache, main);
  const std::vector<int32_t> pages = Fill(&cache, side);
  const int32_t snapshot = cache.AllocateSnapshot();
  cache.AttachSnapshot(std::span(side).first(90), snapshot);
  EXPECT_EQ(cache.Match(main, 127).length, 90);
}

TEST_F(PrefixCacheTest, TheOldestSnapshotMakesRoomUnlessPinned) {
  PrefixCache cache(&pool_, 2);
  const std::vector<TokenId> ids = Range(0, 200);
  Fill(&cache, ids);
  const int32_t a = cache.AllocateSnapshot();
  cache.AttachSnapshot(std::span(ids).first(50), a);
  const int32_t b = cache.AllocateSnapshot();
  cache.AttachSnapshot(std::span(ids).first(100), b);
  cache.PinSnapshot(a);
  EXPECT_EQ(cache.AllocateSnapshot(), b);
  EXPECT_EQ(cache.AllocateSnapshot(), -1);
  cache.UnpinSnapshot(a);
  EXPECT_EQ(cache.AllocateSnapshot(), a);
  EXPECT_EQ(cache.num_snapshots_unattached(), 2);
  EXPECT_EQ(cache.Match(ids, 199).length, 0);
}

TEST_F(PrefixCacheTest, EvictingAPageFreesItsSnapshots) {
  PrefixCache cache(&pool_, 1);
  const std::vector<TokenId> ids = Range(0, 512);
  Fill(&cache, ids);
  cache.AttachSnapshot(ids, cache.AllocateSnapshot());
  EXPECT_GE(cache.AllocatePage(), 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  EXPECT_EQ(cache.Match(ids, 512).length, 0);
  EXPECT_GE(cache.AllocateSnapshot(), 0);
}

}  // namespace
}  // namespace packtrain
