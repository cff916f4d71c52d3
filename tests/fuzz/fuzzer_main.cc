// libFuzzer's entry for the target named at build time.

#include <cstddef>
#include <cstdint>

#include "common/base/check.h"
#include "tests/fuzz/fuzz_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string broken = packtrain::PACKTRAIN_FUZZ_TARGET(std::as_bytes(std::span(data, size)));
  CHECK_MSG(broken.empty(), broken);
  return 0;
}
