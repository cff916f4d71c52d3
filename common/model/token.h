#pragma once

#include <cstdint>

namespace packtrain {

using TokenId = int32_t;

}  // namespace packtrain
