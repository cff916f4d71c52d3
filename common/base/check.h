#pragma once

// CHECK: what only our own bug can break. On in release; prints place and message, then aborts.
// What the outside world can cause returns absl::Status instead.

#include <string_view>

namespace packtrain {
[[noreturn]] void CheckFailed(const char* file, int line, std::string_view condition,
                              std::string_view message);
}  // namespace packtrain

#define PACKTRAIN_CHECK(condition, message)                                        \
  do {                                                                             \
    if (!(condition)) [[unlikely]]                                                 \
      ::packtrain::CheckFailed(__FILE__, __LINE__, #condition, (message));         \
  } while (false)
#define CHECK(condition) PACKTRAIN_CHECK(condition, "")
#define CHECK_MSG(condition, message) PACKTRAIN_CHECK(condition, message)
