#include "common/model/weight_source.h"

#include "common/weights/gguf.h"

namespace packtrain {

absl::StatusOr<std::span<const std::byte>> MappedWeights::Find(const GgufTensor& tensor) const {
  return file_.Data(tensor);
}

}  // namespace packtrain
