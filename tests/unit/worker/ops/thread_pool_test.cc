#include "worker/ops/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>

namespace packtrain {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnceOnAThreadOfThePool) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int count : {0, 1, 2, 100, 1000}) {
      std::vector<int> runs(static_cast<size_t>(count));
      std::vector<int> by_thread(static_cast<size_t>(threads));
      pool.ParallelFor(count, [&](int i, int thread) {
        ++runs[static_cast<size_t>(i)];
        ++by_thread[static_cast<size_t>(thread)];
      });
      EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(count), 1));
      EXPECT_EQ(std::accumulate(by_thread.begin(), by_thread.end(), 0), count);
    }
  }
}

TEST(ThreadPoolTest, ResultsOfOneCallAreSeenByTheNext) {
  ThreadPool pool(4);
  std::vector<int> values(256, 0);
  for (int round = 0; round < 200; ++round) {
    // Each task reads what another thread may have written in the round before.
    std::vector<int> next(values.size());
    pool.ParallelFor(256, [&](int i, int) {
      next[static_cast<size_t>(i)] = values[static_cast<size_t>((i + round) % 256)] + 1;
    });
    values = next;
  }
  EXPECT_EQ(values, std::vector<int>(256, 200));
}

}  // namespace
}  // namespace packtrain
