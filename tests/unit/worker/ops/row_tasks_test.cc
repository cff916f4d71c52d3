// Aim: rows are split into tasks without a gap, and threads that take them in turn end together.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "worker/ops/linear.h"

namespace packtrain {
namespace {

using Sizes = std::vector<size_t>;

TEST(RowTasksTest, EveryRowIsInOneTask) {
  for (size_t rows : Sizes{0, 1, 7, 16, 17, 100, 2048, 6144, 524288}) {
    for (size_t threads : Sizes{1, 2, 15, 64}) {
      for (size_t least : Sizes{0, 1, 16, 40}) {
        for (size_t most : Sizes{1, 40, 250, SIZE_MAX}) {
          const RowTasks tasks(rows, threads, least, most);
          size_t next = 0;
          for (size_t i = 0; i < tasks.size(); ++i) {
            ASSERT_EQ(tasks.begin(i), next);
            const size_t taken = tasks.end(i) - next;
            ASSERT_GT(taken, 0);
            // Neither goes below what a task is worth.
            const size_t floor = (std::max<size_t>(least, 1) + 15) / 16 * 16;
            ASSERT_LE(taken, std::max(most, floor));
            if (i + 1 < tasks.size()) {
              ASSERT_EQ(taken % RowTasks::kMultiple, 0);
              ASSERT_GE(taken, floor);
            }
            next = tasks.end(i);
          }
          ASSERT_EQ(next, rows);
        }
      }
    }
  }
}

// When the last of the threads ends, in the time that they take if none ever waits. Each takes the
// next task when it is done with one; `seconds` is what a row costs it.
double Finish(const RowTasks& tasks, const std::vector<double>& seconds) {
  std::vector<double> busy(seconds.size(), 0);
  double rate = 0;
  for (double s : seconds) rate += 1 / s;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const auto next = std::min_element(busy.begin(), busy.end());
    const double rows = static_cast<double>(tasks.end(i) - tasks.begin(i));
    *next += rows * seconds[static_cast<size_t>(next - busy.begin())];
  }
  const auto rows = static_cast<double>(tasks.end(tasks.size() - 1));
  return *std::max_element(busy.begin(), busy.end()) / (rows / rate);
}

TEST(RowTasksTest, ThreadsEndTogether) {
  // Equal tasks, eight a thread, end up to 12 % late: 6144 rows are 110 tasks of 56 then, and one
  // of 15 threads that has seven done waits for those with eight.
  for (size_t threads : Sizes{2, 6, 12, 15, 16}) {
    std::vector<double> seconds(threads, 1.0);
    EXPECT_LT(Finish(RowTasks(6144, threads, 8, SIZE_MAX), seconds), 1.04) << threads;
    // Two that share a core with somebody.
    seconds[0] = 1.7;
    seconds[1] = 1.3;
    EXPECT_LT(Finish(RowTasks(6144, threads, 8, SIZE_MAX), seconds), 1.06) << threads;
    EXPECT_LT(Finish(RowTasks(16384, threads, 8, SIZE_MAX), seconds), 1.03) << threads;
  }
}

}  // namespace
}  // namespace packtrain
