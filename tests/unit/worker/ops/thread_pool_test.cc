// Aim: every task of every call runs exactly once, before the call returns, whatever the threads
// do. Method: many short calls back to back (threads late for one call meet the next), counted per
// task.

#include "worker/ops/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

namespace packtrain {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<ThreadPoolOptions> {};

TEST_P(ThreadPoolTest, RunsEveryTaskOfEveryCallOnce) {
  ThreadPool pool(GetParam());
  std::vector<int> runs(97);
  int expected = 0;
  for (int call = 0; call < 3000; ++call) {
    const int count = call % 98;
    pool.ParallelFor(count, [&](int i, int) { ++runs[static_cast<size_t>(i)]; });
    expected += count;
    ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), 0), expected) << "call " << call;
  }
}

TEST_P(ThreadPoolTest, GivesEachTaskAThreadOfItsOwn) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> inside(static_cast<size_t>(pool.num_threads()));
  std::atomic<bool> shared{false};
  pool.ParallelFor(500, [&](int, int thread) {
    if (inside[static_cast<size_t>(thread)].fetch_add(1) != 0) shared = true;
    std::this_thread::yield();
    inside[static_cast<size_t>(thread)].fetch_sub(1);
  });
  EXPECT_FALSE(shared);
}

TEST_P(ThreadPoolTest, WakesThreadsThatSleep) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> sum{0};
    pool.ParallelFor(100, [&](int i, int) { sum += i; });
    EXPECT_EQ(sum, 4950);
  }
}

TEST(CallPredictorTest, ExpectsTheLongestOfTheLastPausesThatAreWorthSpinningOver) {
  using std::chrono::microseconds;
  CallPredictor predictor;
  EXPECT_EQ(predictor.longest_pause(), microseconds(0));
  for (const int pause : {5, 150, 5, 140, 5}) predictor.Observe(microseconds(pause));
  EXPECT_EQ(predictor.longest_pause(), microseconds(150));
  predictor.Observe(std::chrono::seconds(1));  // idle: tells nothing of the next call's pattern
  EXPECT_EQ(predictor.longest_pause(), microseconds(150));
  for (int i = 0; i < 5; ++i) predictor.Observe(microseconds(20));
  EXPECT_EQ(predictor.longest_pause(), microseconds(140));
  for (int i = 0; i < 8; ++i) predictor.Observe(microseconds(20));
  EXPECT_EQ(predictor.longest_pause(), microseconds(20));
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest,
                         ::testing::Values(ThreadPoolOptions{.num_threads = 1},
                                           ThreadPoolOptions{.num_threads = 2, .spin_us = 0},
                                           ThreadPoolOptions{.num_threads = 3, .spin_us = 50},
                                           ThreadPoolOptions{.num_threads = 8, .spin_us = 20},
                                           ThreadPoolOptions{.num_threads = 2, .cpus = {0}}));

}  // namespace
}  // namespace packtrain
