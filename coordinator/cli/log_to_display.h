#pragma once

#include "coordinator/cli/load_display.h"

namespace packtrain {

// While it lives, log lines go to standard error above the progress bars, not into them.
class LogToDisplay {
 public:
  // `display` is borrowed.
  explicit LogToDisplay(LoadDisplay* display);
  ~LogToDisplay();
  LogToDisplay(const LogToDisplay&) = delete;
  LogToDisplay& operator=(const LogToDisplay&) = delete;
};

}  // namespace packtrain
