#include "worker/engine/turn_cpu.h"

#include <algorithm>

namespace packtrain {
namespace {

using std::chrono::microseconds;

// Turns of this mean length or more gain nothing that could be noticed, and lose what two CPUs may
// do at once (a shared expert beside the routed ones).
constexpr microseconds kShort(4000);
// A longer one counts as this much: idle for an hour is not worse than idle for a moment.
constexpr microseconds kLongest(32000);
constexpr int kSmoothing = 8;

}  // namespace

TurnCpu::TurnCpu(std::optional<int> index) : mean_(kLongest) {
  if (!index || sched_getaffinity(0, sizeof all_, &all_) != 0) return;
  int left = *index % CPU_COUNT(&all_);
  CPU_ZERO(&own_);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all_) || left-- > 0) continue;
    CPU_SET(cpu, &own_);
    enabled_ = true;
    return;
  }
}

void TurnCpu::Begin(bool alternates, std::chrono::steady_clock::time_point now) {
  if (!enabled_) return;
  const auto length = std::chrono::duration_cast<microseconds>(now - last_);
  last_ = now;
  mean_ = alternates ? mean_ + (std::min(length, kLongest) - mean_) / kSmoothing : kLongest;
  Bind(mean_ < kShort);
}

void TurnCpu::Bind(bool bound) {
  if (bound == bound_) return;
  // Where that is not allowed the thread stays where it may run: slower, still right.
  sched_setaffinity(0, sizeof own_, bound ? &own_ : &all_);
  bound_ = bound;
}

}  // namespace packtrain
