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

// How long after the time in which all would end at once the last thread ends, in smallest tasks of
// the slowest. Each takes the next task when it is done with one; `seconds` is what a row costs it.
double Late(size_t rows, const std::vector<double>& seconds) {
  const RowTasks tasks(rows, seconds.size(), 8, SIZE_MAX);
  std::vector<double> busy(seconds.size(), 0);
  double rate = 0;
  for (double s : seconds) rate += 1 / s;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const auto next = std::min_element(busy.begin(), busy.end());
    *next += static_cast<double>(tasks.end(i) - tasks.begin(i)) *
             seconds[static_cast<size_t>(next - busy.begin())];
  }
  const double last = *std::max_element(busy.begin(), busy.end());
  const double smallest =
      double{RowTasks::kMultiple} * *std::max_element(seconds.begin(), seconds.end());
  return (last - static_cast<double>(rows) / rate) / smallest;
}

TEST(RowTasksTest, ThreadsEndTogether) {
  // A task takes less than half of what is left for each thread, so only the smallest ones can end
  // late. Equal tasks, eight a thread, do worse: 6144 rows are 110 of 56 then, and threads that
  // have seven done wait for those with eight, 9 % of the time.
  for (size_t threads : Sizes{2, 6, 12, 15, 16}) {
    for (size_t rows : Sizes{6144, 16384}) {
      std::vector<double> seconds(threads, 1.0);
      EXPECT_LE(Late(rows, seconds), 1) << threads;
      // Two that share a core with somebody.
      seconds[0] = 1.7;
      seconds[1] = 1.3;
      EXPECT_LE(Late(rows, seconds), 1) << threads;
    }
  }
}

}  // namespace
}  // namespace packtrain
