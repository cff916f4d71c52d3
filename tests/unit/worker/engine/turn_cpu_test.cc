// Aim: a thread is bound to its CPU while it takes short turns with others, and to none otherwise.
// Method: turns at made-up times; what the kernel says of the thread afterwards.

#include "worker/engine/turn_cpu.h"

#include <gtest/gtest.h>

#include <thread>

namespace packtrain {
namespace {

using std::chrono::microseconds;

int AllowedCpus() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  return CPU_COUNT(&set);
}

// A thread that takes turns. All calls are made in a thread of the test's own, which ends with it.
class Turns {
 public:
  explicit Turns(std::optional<int> index) : cpu_(index) {}

  void Take(int count, microseconds length, bool alternates = true) {
    for (int i = 0; i < count; ++i) cpu_.Begin(alternates, now_ += length);
  }
  bool bound() const { return cpu_.bound(); }

 private:
  TurnCpu cpu_;
  std::chrono::steady_clock::time_point now_{std::chrono::hours(1)};
};

void InThread(void (*test)()) { std::thread(test).join(); }

TEST(TurnCpuTest, ShortTurnsBindAndTurnsThatDoNotAlternateEndThat) {
  InThread([] {
    const int all = AllowedCpus();
    Turns turns(1);
    turns.Take(1, microseconds(500));
    EXPECT_FALSE(turns.bound());
    turns.Take(30, microseconds(500));
    EXPECT_TRUE(turns.bound());
    EXPECT_EQ(AllowedCpus(), 1);
    turns.Take(1, microseconds(500), /*alternates=*/false);
    EXPECT_FALSE(turns.bound());
    EXPECT_EQ(AllowedCpus(), all);
  });
}

TEST(TurnCpuTest, LongTurnsBindNobodyButOneAmongShortOnesChangesNothing) {
  InThread([] {
    Turns turns(0);
    turns.Take(100, microseconds(6000));
    EXPECT_FALSE(turns.bound());
    turns.Take(100, microseconds(500));
    EXPECT_TRUE(turns.bound());
    turns.Take(1, microseconds(20000));
    EXPECT_TRUE(turns.bound());
    turns.Take(100, microseconds(6000));
    EXPECT_FALSE(turns.bound());
  });
}

TEST(TurnCpuTest, TheSameIndexMeansTheSameCpuAndLargeOnesWrapAround) {
  static cpu_set_t first, again;
  const auto bind = [](int index, cpu_set_t* set) {
    std::thread([=] {
      Turns turns(index);
      turns.Take(100, microseconds(500));
      EXPECT_EQ(sched_getaffinity(0, sizeof *set, set), 0);
    }).join();
  };
  bind(1, &first);
  bind(1 + 7 * AllowedCpus(), &again);
  EXPECT_TRUE(CPU_EQUAL(&first, &again));
}

TEST(TurnCpuTest, WithoutAnIndexNothingIsChanged) {
  InThread([] {
    const int all = AllowedCpus();
    Turns turns(std::nullopt);
    turns.Take(100, microseconds(500));
    EXPECT_FALSE(turns.bound());
    EXPECT_EQ(AllowedCpus(), all);
  });
}

}  // namespace
}  // namespace packtrain
