#pragma once

#include <cstdint>

namespace packtrain {

// Of proto/*.proto. Raised with every change that a process of another build would misread: a
// worker refuses to join a coordinator of another version.
inline constexpr uint32_t kProtocolVersion = 2;

}  // namespace packtrain
