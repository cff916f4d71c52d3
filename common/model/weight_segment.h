#pragma once

// Which tensors of a model stand in one worker's weight segment: computed alike by the coordinator,
// which creates the segment, and by the worker, which fills it.

#include <memory>
#include <utility>
#include <vector>

#include "common/model/config.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "common/weights/segment.h"

namespace packtrain {

// The tensors of all shards; one that several of them name appears once.
SegmentLayout PlanShardSegment(const GgufFile& file, const ModelConfig& config,
                               const ModelTensors& tensors, const std::vector<Shard>& shards);

// What an experts worker for these layers carries.
std::vector<Shard> ExpertsShards(const std::vector<std::pair<int, int>>& layers);

// Tensors in a finished segment.
class SegmentWeights : public WeightSource {
 public:
  explicit SegmentWeights(std::unique_ptr<Segment> segment) : segment_(std::move(segment)) {}
  absl::StatusOr<std::span<const std::byte>> Find(const GgufTensor& tensor) const override;

 private:
  std::unique_ptr<Segment> segment_;
};

}  // namespace packtrain
