#pragma once

// Linking this replaces the global operator new with one that counts.

#include <cstddef>

namespace packtrain {

// Bytes that the whole process has asked operator new for since it started.
size_t AllocatedBytes();

}  // namespace packtrain
