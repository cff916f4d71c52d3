#pragma once

// What a worker of given duties needs of its device's memory and of its host's, item by item. The
// planner divides a model by it, a worker refuses by it before it loads anything.

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/config.h"
#include "common/model/kv_layout.h"
#include "common/model/step.h"
#include "common/model/tensors.h"
#include "common/quant/type.h"

namespace packtrain {

enum class BillItem : uint8_t {
  kAttention,    // weights of attention and norms
  kIndexer,      // weights of sparse attention's indexer
  kFeedForward,  // weights of dense feed-forward, shared experts, routers
  kExperts,      // weights of routed experts
  kEmbedding,
  kHead,
  kKv,
  kIndexKeys,
  kRecurrent,  // states of the slots
  kSnapshots,  // of recurrent state
  kBuffers,    // activations of one ubatch
  kStreaming,  // ring for expert weights on their way to the device
  kTransport,
  kGraphs,
  kRuntime,  // what driver, libraries and the process itself take
};
inline constexpr int kNumBillItems = static_cast<int>(BillItem::kRuntime) + 1;

std::string_view BillItemName(BillItem item);  // "attention", "kv cache", ...

// Bytes by item.
struct MemoryBill {
  std::array<uint64_t, kNumBillItems> bytes{};

  uint64_t& operator[](BillItem item) { return bytes[static_cast<size_t>(item)]; }
  uint64_t operator[](BillItem item) const { return bytes[static_cast<size_t>(item)]; }
  MemoryBill& operator+=(const MemoryBill& other);
  uint64_t total() const;
  uint64_t weights() const;  // the items that are weights
};

struct TypeBytes {
  TensorType type = TensorType::kF32;
  uint64_t bytes = 0;
};

// Weights of one layer in bytes as the file stores them.
struct LayerWeightBytes {
  uint64_t attention = 0;
  uint64_t indexer = 0;
  uint64_t feed_forward = 0;
  uint64_t shared_expert = 0;  // part of feed_forward that can run while experts are computed
  uint64_t experts = 0;        // all routed experts
  uint64_t parameters = 0;     // numbers of weights, without and of routed experts
  uint64_t expert_parameters = 0;
  // The mixes of both, for speeds, routed experts' down matrices apart; may be empty.
  std::vector<TypeBytes> types, expert_types, expert_down_types;
};

struct ModelWeights {
  std::vector<LayerWeightBytes> layers;  // of the trunk, then MTP layers if the file has them
  uint64_t embedding = 0;
  uint64_t head =
      0;  // with the output norm; a tied embedding counts again, another device reads it
  std::vector<TypeBytes> head_types;

  uint64_t total() const;
};

// The MTP layers are left out if the file has none of their tensors.
ModelWeights WeighModel(const ModelConfig& config, const ModelTensors& tensors);

// What a bill needs to know of a model.
struct ModelFacts {
  ModelConfig config;
  ModelWeights weights;
};

// Reads headers only. Errors: those of ReadModelConfig and ModelTensors::Resolve.
absl::StatusOr<ModelFacts> ReadModelFacts(const GgufFile& file);

// Duties that all stages of a deployment share.
struct DeploymentShape {
  KvCacheType kv_cache = KvCacheType::kF16;
  int num_pages = 0;
  int num_slots = 8;
  int num_snapshots = 0;
  int max_tokens = 512;   // rows of the largest ubatch
  int streamed_rows = 0;  // as in StreamsExperts

  bool Streams(int rows) const { return StreamsExperts(streamed_rows, rows); }
  // Rows of the largest ubatch whose experts an experts worker computes for GPUs of its host.
  int ComputedRows() const { return Streams(max_tokens) ? streamed_rows - 1 : max_tokens; }
};

enum class DeviceKind : uint8_t { kCpu, kCuda };

// Duties of one stage besides its layers.
struct StageDuties {
  DeviceKind device = DeviceKind::kCpu;
  bool embeds = false;
  bool has_head = false;
  bool receives = false;      // a stage in front of it
  bool sends = false;         // a stage behind it
  bool asks_experts = false;  // some of its routed experts are computed by an experts worker
  bool nccl = false;          // a GPU that is not the only one of the deployment
};

// One layer on its stage, without its routed experts; and those alone.
MemoryBill LayerBill(const ModelFacts& model, const DeploymentShape& shape, DeviceKind device,
                     int layer);
// Everything of a stage that does not depend on its layers. Of the device: the embedding table is
// counted here only for a CPU stage.
MemoryBill StageBaseBill(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties);
// What a stage takes of its host's RAM besides its device: for CUDA stages the embedding table,
// pinned buffers and the process; nothing for CPU stages, whose device that RAM is.
MemoryBill StageHostBill(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties);

// A whole stage: layers [first, last), of which [resident_first, resident_last) hold their experts.
MemoryBill StageBill(const ModelFacts& model, const DeploymentShape& shape,
                     const StageDuties& duties, int first, int last, int resident_first,
                     int resident_last);

// An experts worker without its experts, and with those of some layers.
MemoryBill ExpertsBaseBill(const ModelFacts& model, const DeploymentShape& shape);

}  // namespace packtrain
