#include "worker/server/device_name.h"

#include <charconv>

#include "absl/strings/str_format.h"

namespace packtrain {

absl::StatusOr<int> CudaOrdinal(std::string_view device) {
  constexpr std::string_view kPrefix = "cuda:";
  int ordinal = -1;
  const char* end = device.data() + device.size();
  if (device.starts_with(kPrefix)) {
    const auto parsed = std::from_chars(device.data() + kPrefix.size(), end, ordinal);
    if (parsed.ec == std::errc() && parsed.ptr == end && ordinal >= 0) return ordinal;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("device \"%s\": allowed are cpu and cuda:N", device));
}

}  // namespace packtrain
