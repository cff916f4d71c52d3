#pragma once

// Where the bytes of a model's tensors lie: the mapped file, or memory a loader has filled.

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"

namespace packtrain {

class GgufFile;
struct GgufTensor;

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The tensor's bytes in the file's layout, valid as long as the source.
  // Errors: NOT_FOUND if this source does not hold the tensor.
  virtual absl::StatusOr<std::span<const std::byte>> Find(const GgufTensor& tensor) const = 0;
};

// The mapping of the file itself, which must outlive this.
class MappedWeights : public WeightSource {
 public:
  explicit MappedWeights(const GgufFile& file) : file_(file) {}
  absl::StatusOr<std::span<const std::byte>> Find(const GgufTensor& tensor) const override;

 private:
  const GgufFile& file_;
};

}  // namespace packtrain
