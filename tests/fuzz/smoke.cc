#include "tests/fuzz/smoke.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "absl/strings/str_format.h"

namespace packtrain {
namespace {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  // One to four small damages of the kinds that break readers of length-prefixed formats.
  std::string Mutate(std::string bytes, const std::string& other) {
    const uint64_t count = 1 + Below(4);
    for (uint64_t i = 0; i < count && !bytes.empty(); ++i) MutateOnce(&bytes, other);
    return bytes;
  }

 private:
  // Not std::uniform_int_distribution, whose results differ between libraries.
  uint64_t Below(uint64_t limit) { return random_() % limit; }

  void MutateOnce(std::string* bytes, const std::string& other) {
    const size_t at = Below(bytes->size());
    const size_t length = std::min<size_t>(1 + Below(32), bytes->size() - at);
    switch (Below(7)) {
      case 0:
        (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Below(8)));
        break;
      case 1:
        (*bytes)[at] = static_cast<char>(Below(256));
        break;
      case 2:
        WriteInteger(bytes, at);
        break;
      case 3:
        bytes->resize(at);
        break;
      case 4:
        bytes->erase(at, length);
        break;
      case 5:
        bytes->insert(at, bytes->substr(at, length));
        break;
      default:
        if (!other.empty()) bytes->replace(at, length, other.substr(Below(other.size()), length));
    }
  }

  // Overwrites 4 or 8 bytes with a number at which arithmetic tends to break.
  void WriteInteger(std::string* bytes, size_t at) {
    const uint64_t power = uint64_t{1} << Below(64);
    const uint64_t value = Below(2) == 0 ? power : power - 1 - Below(2);
    const size_t width = Below(2) == 0 ? 4 : 8;
    std::memcpy(bytes->data() + at, &value, std::min(width, bytes->size() - at));
  }

  std::mt19937_64 random_;
};

}  // namespace

std::string RunSmoke(const std::vector<std::string>& corpus, SmokeOptions options,
                     const FuzzTarget& target) {
  Mutator mutator(options.seed);
  for (size_t entry = 0; entry < corpus.size(); ++entry) {
    for (int round = 0; round <= options.rounds; ++round) {
      const std::string& other = corpus[(entry + static_cast<size_t>(round)) % corpus.size()];
      const std::string input = round == 0 ? corpus[entry] : mutator.Mutate(corpus[entry], other);
      // A copy of exactly this size on the heap, so that a sanitizer sees reads past its end.
      const std::vector<std::byte> bytes(
          reinterpret_cast<const std::byte*>(input.data()),
          reinterpret_cast<const std::byte*>(input.data()) + input.size());
      const std::string broken = target(bytes);
      if (!broken.empty()) {
        return absl::StrFormat("seed %d, corpus entry %d, round %d: %s", options.seed, entry, round,
                               broken);
      }
    }
  }
  return "";
}

}  // namespace packtrain
