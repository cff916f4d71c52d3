#pragma once

// A short deterministic run of a fuzz target for every build: seeded mutations of a corpus.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace packtrain {

using FuzzTarget = std::function<std::string(std::span<const std::byte>)>;

struct SmokeOptions {
  uint64_t seed = 1;
  int rounds = 0;  // mutations of each corpus entry
};

// Runs `target` on every entry and its mutations until it returns something else than "".
// Returns "" or what broke, with the entry and the round that show it.
std::string RunSmoke(const std::vector<std::string>& corpus, SmokeOptions options,
                     const FuzzTarget& target);

}  // namespace packtrain
