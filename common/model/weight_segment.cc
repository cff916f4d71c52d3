#include "common/model/weight_segment.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "common/weights/gguf.h"

namespace packtrain {

SegmentLayout PlanShardSegment(const GgufFile& file, const ModelConfig& config,
                               const ModelTensors& tensors, const std::vector<Shard>& shards) {
  std::vector<const GgufTensor*> chosen;
  absl::flat_hash_set<const GgufTensor*> seen;
  for (const Shard& shard : shards) {
    for (const ModelTensor& t : ShardTensors(config, tensors, shard)) {
      if (seen.insert(t.tensor).second) chosen.push_back(t.tensor);
    }
  }
  return PlanSegment(file, chosen);
}

std::vector<Shard> ExpertsShards(const std::vector<std::pair<int, int>>& layers) {
  std::vector<Shard> shards;
  for (const auto& [first, last] : layers) {
    shards.push_back({.first_experts = first, .last_experts = last});
  }
  return shards;
}

absl::StatusOr<std::span<const std::byte>> SegmentWeights::Find(const GgufTensor& tensor) const {
  const std::span<const std::byte> bytes = segment_->Find(tensor.name);
  if (!bytes.empty()) return bytes;
  return absl::NotFoundError(
      absl::StrFormat("tensor '%s' is not in this worker's weight segment", tensor.name));
}

}  // namespace packtrain
