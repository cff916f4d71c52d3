#include "common/model/bill.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/step.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Rows that a stage works on at once within a ubatch: scratch of attention and feed-forward is as
// large as that, however long the ubatch.
constexpr int kScratchRows = 512;
// The ring through which expert weights come to a device: pieces in flight and in use.
constexpr uint64_t kStreamingBytes = 8 * 128 * kMiB;
// A CUDA context with the kernels' code and workspaces: an assumption, on the safe side of what
// such contexts usually take.
constexpr uint64_t kCudaRuntime = 600 * kMiB;
constexpr uint64_t kProcessRuntime = 256 * kMiB;
constexpr uint64_t kPinnedStaging = 128 * kMiB;

uint64_t U(int value) { return static_cast<uint64_t>(value); }

// f32 values of scratch per row: the widest of the model's kinds of layers.
uint64_t ScratchValues(const ModelConfig& c) {
  uint64_t widest = 0;
  for (const LayerConfig& layer : c.layers) {
    uint64_t attention = 0;
    switch (layer.attention) {
      case AttentionKind::kMla:
        attention =
            U(c.mla.q_lora_rank) + U(c.num_heads) * U(2 * c.mla.nope_dim + 2 * c.rope.dims +
                                                      2 * c.mla.kv_lora_rank + c.mla.value_dim);
        if (layer.indexer != IndexerKind::kNone) {
          attention += U(c.indexer.num_heads) * U(c.indexer.head_dim + 1);
        }
        break;
      case AttentionKind::kGqa:
        attention = U(c.num_heads) * U((c.gqa.output_gate ? 2 : 1) * c.gqa.key_dim) +
                    U(c.gqa.num_kv_heads) * U(c.gqa.key_dim + c.gqa.value_dim) +
                    U(c.num_heads) * U(c.gqa.value_dim);
        break;
      case AttentionKind::kGatedDeltaNet:
        attention = 2 * U(c.delta_net.conv_channels()) + 3 * U(c.delta_net.inner_dim());
        break;
    }
    uint64_t ffn = 2 * U(c.dense_dim);
    if (layer.ffn == FfnKind::kMoe) {
      ffn = 2 * U(c.moe.shared_dim) + U(c.moe.num_experts) +
            U(c.moe.top_k) * U(2 * c.moe.expert_dim + 2 * c.hidden_dim);
    }
    widest = std::max({widest, attention, ffn});
  }
  return widest;
}

// A bundle of one hop: residual and, with an indexer, its selection.
uint64_t BundleBytes(const ModelConfig& c, const DeploymentShape& shape) {
  return U(shape.max_tokens) * U(c.hidden_dim + c.indexer.top_k) * 4;
}

uint64_t BufferBytes(const ModelConfig& c, const DeploymentShape& shape, bool has_head) {
  const uint64_t rows = U(shape.max_tokens);
  uint64_t bytes = rows * U(3 * c.hidden_dim + c.indexer.top_k) * 4;
  bytes += std::min(rows, U(kScratchRows)) * ScratchValues(c) * 4;
  if (has_head) bytes += U(std::max(shape.num_slots, 64)) * U(c.vocab_size) * 4;
  return bytes;
}

void AddTensor(const ModelTensor& tensor, LayerWeightBytes* layer) {
  const uint64_t bytes = tensor.tensor->bytes;
  (IsRoutedExpert(tensor.role) ? layer->expert_parameters : layer->parameters) +=
      tensor.tensor->elements();
  switch (tensor.role) {
    case TensorRole::kIndexerQB:
    case TensorRole::kIndexerK:
    case TensorRole::kIndexerKNorm:
    case TensorRole::kIndexerKNormBias:
    case TensorRole::kIndexerProj:
      layer->indexer += bytes;
      break;
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown:
      layer->shared_expert += bytes;
      layer->feed_forward += bytes;
      break;
    case TensorRole::kFfnGate:
    case TensorRole::kFfnUp:
    case TensorRole::kFfnDown:
    case TensorRole::kRouter:
    case TensorRole::kRouterBias:
    case TensorRole::kSharedRouter:
      layer->feed_forward += bytes;
      break;
    default:
      (IsRoutedExpert(tensor.role) ? layer->experts : layer->attention) += bytes;
  }
}

}  // namespace

std::string_view BillItemName(BillItem item) {
  constexpr std::string_view kNames[kNumBillItems] = {
      "attention", "indexer",   "feed-forward", "experts",   "embedding",
      "head",      "kv cache",  "index keys",   "recurrent", "snapshots",
      "buffers",   "streaming", "transport",    "graphs",    "runtime"};
  return kNames[static_cast<size_t>(item)];
}

MemoryBill& MemoryBill::operator+=(const MemoryBill& other) {
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] += other.bytes[i];
  return *this;
}

uint64_t MemoryBill::total() const {
  uint64_t sum = 0;
  for (uint64_t b : bytes) sum += b;
  return sum;
}

uint64_t MemoryBill::weights() const {
  uint64_t sum = 0;
  for (size_t i = 0; i <= static_cast<size_t>(BillItem::kHead); ++i) sum += bytes[i];
  return sum;
}

uint64_t ModelWeights::total() const {
  uint64_t sum = embedding + head;
  for (const LayerWeightBytes& l : layers)
    sum += l.attention + l.indexer + l.feed_forward + l.experts;
  return sum;
}

ModelWeights WeighModel(const ModelConfig& config, const ModelTensors& tensors) {
  ModelWeights weights;
  weights.layers.resize(U(config.num_layers + (tensors.has_mtp() ? config.num_mtp_layers : 0)));
  bool own_head = false;
  for (const ModelTensor& tensor : tensors.all()) {
    if (tensor.role == TensorRole::kTokenEmbd) {
      weights.embedding += tensor.tensor->bytes;
    } else if (tensor.layer < 0) {
      own_head |= tensor.role == TensorRole::kOutput;
      weights.head += tensor.tensor->bytes;
    } else if (U(tensor.layer) < weights.layers.size()) {
      AddTensor(tensor, &weights.layers[U(tensor.layer)]);
    }
  }
  if (!own_head) weights.head += weights.embedding;
  return weights;
}

absl::StatusOr<ModelFacts> ReadModelFacts(const GgufFile& file) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(file));
  ASSIGN_OR_RETURN(const ModelTensors tensors, ModelTensors::Resolve(config, file));
  ModelWeights weights = WeighModel(config, tensors);
  return ModelFacts{std::move(config), std::move(weights)};
}

MemoryBill LayerBill(const ModelFacts& model, const DeploymentShape& shape, DeviceKind device,
                     int layer) {
  CHECK(layer >= 0 && U(layer) < model.weights.layers.size());
  const LayerWeightBytes& weights = model.weights.layers[U(layer)];
  LayerConfig config = model.config.layers[U(layer)];
  MemoryBill bill;
  bill[BillItem::kAttention] = weights.attention;
  bill[BillItem::kIndexer] = weights.indexer;
  bill[BillItem::kFeedForward] = weights.feed_forward;
  const uint64_t positions = U(shape.num_pages) * kPagePositions;
  const uint64_t with_keys = KvBytesPerPosition(model.config, config, shape.kv_cache);
  config.indexer = IndexerKind::kNone;
  const uint64_t without = KvBytesPerPosition(model.config, config, shape.kv_cache);
  bill[BillItem::kKv] = positions * without;
  bill[BillItem::kIndexKeys] = positions * (with_keys - without);
  const uint64_t recurrent = RecurrentBytes(model.config, config);
  bill[BillItem::kRecurrent] = recurrent * U(shape.num_slots);
  bill[BillItem::kSnapshots] = recurrent * U(shape.num_snapshots);
  if (device == DeviceKind::kCuda) bill[BillItem::kGraphs] = kMiB;
  return bill;
}

MemoryBill StageBaseBill(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties) {
  const ModelConfig& c = model.config;
  const bool cuda = duties.device == DeviceKind::kCuda;
  MemoryBill bill;
  if (duties.has_head) bill[BillItem::kHead] = model.weights.head;
  if (duties.embeds && !cuda) bill[BillItem::kEmbedding] = model.weights.embedding;
  bill[BillItem::kBuffers] = BufferBytes(c, shape, duties.has_head);
  bill[BillItem::kTransport] = (duties.receives ? 2 : 0) * BundleBytes(c, shape) +
                               (duties.sends ? 2 : 0) * BundleBytes(c, shape);
  if (duties.streams_experts && cuda) bill[BillItem::kStreaming] = kStreamingBytes;
  if (duties.asks_experts) {
    bill[BillItem::kTransport] += U(shape.max_tokens) * U(2 * c.hidden_dim + 2 * c.moe.top_k) * 4;
  }
  bill[BillItem::kRuntime] = cuda ? kCudaRuntime : kProcessRuntime;
  return bill;
}

MemoryBill StageHostBill(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties) {
  MemoryBill bill;
  if (duties.device == DeviceKind::kCpu) return bill;
  if (duties.embeds) bill[BillItem::kEmbedding] = model.weights.embedding;
  bill[BillItem::kTransport] =
      U(2 * duties.receives + 2 * duties.sends) * BundleBytes(model.config, shape);
  bill[BillItem::kBuffers] = kPinnedStaging;
  bill[BillItem::kRuntime] = kProcessRuntime;
  return bill;
}

MemoryBill StageBill(const ModelFacts& model, const DeploymentShape& shape,
                     const StageDuties& duties, int first, int last, int resident_first,
                     int resident_last) {
  MemoryBill bill = StageBaseBill(model, shape, duties);
  for (int layer = first; layer < last; ++layer) {
    bill += LayerBill(model, shape, duties.device, layer);
    if (layer >= resident_first && layer < resident_last) {
      bill[BillItem::kExperts] += model.weights.layers[U(layer)].experts;
    }
  }
  return bill;
}

MemoryBill ExpertsBaseBill(const ModelFacts& model, const DeploymentShape& shape) {
  const ModelConfig& c = model.config;
  MemoryBill bill;
  bill[BillItem::kBuffers] =
      U(shape.max_tokens) * U(c.moe.top_k) * U(2 * c.moe.expert_dim + c.hidden_dim) * 4;
  bill[BillItem::kTransport] = U(shape.max_tokens) * U(2 * c.hidden_dim + 2 * c.moe.top_k) * 4;
  bill[BillItem::kRuntime] = kProcessRuntime;
  return bill;
}

}  // namespace packtrain
