#pragma once

// Shows how far each worker has loaded: a block of bars that is redrawn on a terminal, else a plain
// line per worker now and then. Thread-safe.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "common/base/mutex.h"

namespace packtrain {

class LoadDisplay {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `out` is borrowed; `terminal`: whether lines may be redrawn.
  LoadDisplay(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}

  // Worker `id` has loaded `done` of `total` bytes.
  void Update(const std::string& id, uint64_t done, uint64_t total, Time now);
  // One line above the bars.
  void Print(const std::string& line);

 private:
  struct Worker {
    std::string id;
    uint64_t done = 0;
    uint64_t total = 0;
    Time started;
    Time shown;
    bool complete = false;
  };
  std::string Describe(const Worker& worker, Time now) const;
  void RedrawLocked(Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::FILE* const out_;
  const bool terminal_;
  Mutex mutex_;
  std::vector<Worker> workers_ ABSL_GUARDED_BY(mutex_);
  size_t lines_drawn_ ABSL_GUARDED_BY(mutex_) = 0;
};

// "12.3 MiB".
std::string FormatBytes(uint64_t bytes);

}  // namespace packtrain
