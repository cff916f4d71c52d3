#include "coordinator/cli/load_display.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

constexpr auto kLineInterval = std::chrono::seconds(2);
constexpr int kBarCells = 24;

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, value, kUnits[unit]);
}

std::string LoadDisplay::Describe(const Worker& worker, Time now) const {
  const double share =
      worker.total == 0 ? 1 : static_cast<double>(worker.done) / static_cast<double>(worker.total);
  std::string text = absl::StrFormat("%s of %s, %3.0f %%", FormatBytes(worker.done),
                                     FormatBytes(worker.total), 100 * share);
  const double seconds = std::chrono::duration<double>(now - worker.started).count();
  if (worker.complete) {
    absl::StrAppendFormat(&text, ", loaded in %.1f s", seconds);
  } else if (worker.done > 0 && seconds > 0.5) {
    absl::StrAppendFormat(&text, ", %.0f s left", seconds * (1 - share) / share);
  }
  return text;
}

void LoadDisplay::Update(const std::string& id, uint64_t done, uint64_t total, Time now) {
  MutexLock lock(&mutex_);
  auto worker =
      std::find_if(workers_.begin(), workers_.end(), [&](const Worker& w) { return w.id == id; });
  const bool first = worker == workers_.end();
  if (first) {
    workers_.push_back({.id = id, .started = now, .shown = now});
    worker = workers_.end() - 1;
  }
  if (worker->complete) return;
  worker->done = std::min(done, total);
  worker->total = total;
  worker->complete = done >= total;
  if (terminal_) return RedrawLocked(now);
  if (!first && !worker->complete && now - worker->shown < kLineInterval) return;
  worker->shown = now;
  std::fprintf(out_, "%s: %s\n", id.c_str(), Describe(*worker, now).c_str());
  std::fflush(out_);
}

void LoadDisplay::RedrawLocked(Time now) {
  std::string text;
  if (lines_drawn_ > 0) absl::StrAppendFormat(&text, "\x1b[%dA", lines_drawn_);
  size_t width = 0;
  for (const Worker& worker : workers_) width = std::max(width, worker.id.size());
  for (const Worker& worker : workers_) {
    const double share = worker.total == 0
                             ? 1
                             : static_cast<double>(worker.done) / static_cast<double>(worker.total);
    const int cells = static_cast<int>(share * kBarCells);
    absl::StrAppendFormat(&text, "\r\x1b[K%-*s [%s%s] %s\n", static_cast<int>(width), worker.id,
                          std::string(static_cast<size_t>(cells), '#'),
                          std::string(static_cast<size_t>(kBarCells - cells), ' '),
                          Describe(worker, now));
  }
  lines_drawn_ = workers_.size();
  std::fputs(text.c_str(), out_);
  std::fflush(out_);
}

void LoadDisplay::Print(const std::string& line) {
  MutexLock lock(&mutex_);
  std::fprintf(out_, "%s\n", line.c_str());
  std::fflush(out_);
  lines_drawn_ = 0;
}

}  // namespace packtrain
