#pragma once

// Where threads of several processes take turns, each waiting while another computes, and nobody
// spins, the turns of a small model are shorter than what it takes to wake up another CPU (about
// 50 us in a virtual machine; a thread on the waker's own CPU runs after 4). So the threads share
// one CPU as long as they do take turns and these are short. One thread.

#include <sched.h>

#include <chrono>
#include <optional>

namespace packtrain {

class TurnCpu {
 public:
  // The CPU: the index-th, modulo their number, of those that the calling thread may run on.
  // Without an index nothing is ever changed.
  explicit TurnCpu(std::optional<int> index);

  // The calling thread begins a turn. `alternates`: nobody else of the group has anything to do
  // until it ends.
  void Begin(bool alternates, std::chrono::steady_clock::time_point now);
  bool bound() const { return bound_; }

 private:
  void Bind(bool bound);

  bool enabled_ = false;
  cpu_set_t all_, own_;
  bool bound_ = false;
  std::chrono::microseconds mean_;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace packtrain
