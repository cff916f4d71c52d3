#pragma once

// What the fuzzers and their short deterministic runs feed. A target returns "" if all it checks
// held, else what broke; crashes and sanitizer reports speak for themselves.

#include <cstddef>
#include <span>
#include <string>

namespace packtrain {

// The bytes as a GGUF file: what is accepted must lie inside them.
std::string FuzzGguf(std::span<const std::byte> bytes);

}  // namespace packtrain
