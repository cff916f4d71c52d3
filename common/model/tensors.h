#pragma once

// Which tensors a model consists of, checked against a weight file, and which of them a worker
// needs. Planner and workers both read this.

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/model/arch/description.h"
#include "common/model/config.h"

namespace packtrain {

class GgufFile;
struct GgufTensor;

struct ModelTensor {
  TensorRole role = TensorRole::kNone;
  int layer = -1;                      // -1: global
  const GgufTensor* tensor = nullptr;  // borrowed from the file
};

class ModelTensors {
 public:
  // Errors: INVALID_ARGUMENT for a missing tensor and one of another shape or with a companion
  // tensor that is not supported; the message names file, tensor and both shapes. Tensors that the
  // description does not ask for are ignored.
  static absl::StatusOr<ModelTensors> Resolve(const ModelConfig& config, const GgufFile& file);

  const std::vector<ModelTensor>& all() const { return all_; }
  const GgufTensor* Find(TensorRole role, int layer) const;  // nullptr if the file has none
  // Files may declare an MTP layer and leave its tensors out.
  bool has_mtp() const { return has_mtp_; }

 private:
  void Add(TensorRole role, int layer, const GgufTensor* tensor);

  std::vector<ModelTensor> all_;
  absl::flat_hash_map<std::pair<int, TensorRole>, const GgufTensor*> index_;
  bool has_mtp_ = false;
};

// The part of a model that a worker carries. Ranges are half-open.
struct Shard {
  int first_layer = 0;  // attention, norms, router, shared expert, dense feed-forward
  int last_layer = 0;
  bool embeds = false;
  bool has_head = false;
  bool has_mtp = false;
  int first_experts = 0;  // layers whose routed experts it holds; may lie outside the layers
  int last_experts = 0;
};

// The tensors of `shard`, in the order of `tensors.all()`.
std::vector<ModelTensor> ShardTensors(const ModelConfig& config, const ModelTensors& tensors,
                                      const Shard& shard);

}  // namespace packtrain
