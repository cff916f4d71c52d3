#include "common/model/bill.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/buffers.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A CUDA context with the kernels' code: 500 to 540 MiB on an H200; cards with fewer
// multiprocessors take less.
constexpr uint64_t kCudaRuntime = 560 * kMiB;
// A worker's heap and threads: 4 to 6 MiB; its program and libraries, which others share, 3. With
// CUDA 150 MiB of the driver's and 186 of libraries and registers that it maps; with MLA 86 more,
// for there are twice as many kernels.
constexpr uint64_t kProcessRuntime = 8 * kMiB;
constexpr uint64_t kCudaProcessRuntime = 336 * kMiB, kMlaProcessRuntime = 84 * kMiB;
// Bundles that a link's sender keeps, one that is filled, one on its way and one waiting
// (kBundlesInFlight); its receiver has one. In RAM, and with NCCL as many on the GPU.
constexpr uint64_t kSentBundles = 3;
// NCCL took 440 MiB of each of two H200 that one link joins. Its channels have 4 MiB for each
// direction, its default; the rest is its code, once.
constexpr uint64_t kNcclChannels = 8, kNcclEnd = kNcclChannels * 2 * 4 * kMiB;
constexpr uint64_t kNcclCode = 376 * kMiB;
constexpr uint64_t kDecodeRows = 8;  // whose logits a CUDA stage copies to the host

uint64_t U(int value) { return static_cast<uint64_t>(value); }

// A bundle of one hop: residual and, with an indexer, its selection.
uint64_t BundleBytes(const ModelConfig& c, const DeploymentShape& shape) {
  return U(shape.max_tokens) * U(c.hidden_dim + c.indexer.top_k) * 4;
}

// Of all links of a stage, in one kind of memory.
uint64_t LinkBytes(const ModelConfig& c, const DeploymentShape& shape, const StageDuties& duties) {
  return (kSentBundles * U(duties.sends) + U(duties.receives)) * BundleBytes(c, shape);
}

// On a GPU: shared memory and gRPC carry bundles from RAM.
uint64_t NcclBytes(const ModelConfig& c, const DeploymentShape& shape, const StageDuties& duties) {
  const uint64_t ends = U(duties.receives + duties.sends);
  if (!duties.nccl || ends == 0) return 0;
  return kNcclCode + ends * kNcclEnd + LinkBytes(c, shape, duties);
}

// What goes to an experts worker and comes back: rows, picks, weights, sums.
uint64_t ExchangeBytes(const ModelConfig& c, const DeploymentShape& shape) {
  return U(shape.max_tokens) * U(2 * c.hidden_dim + 2 * c.moe.top_k) * 4;
}

void AddType(TensorType type, uint64_t bytes, std::vector<TypeBytes>* types) {
  for (TypeBytes& part : *types) {
    if (part.type != type) continue;
    part.bytes += bytes;
    return;
  }
  types->push_back({type, bytes});
}

void AddTensor(const ModelTensor& tensor, LayerWeightBytes* layer) {
  const uint64_t bytes = tensor.tensor->bytes;
  AddType(tensor.tensor->type, bytes,
          tensor.role == TensorRole::kExpertsDown ? &layer->expert_down_types
          : IsRoutedExpert(tensor.role)           ? &layer->expert_types
                                                  : &layer->types);
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
  TensorType embedding = TensorType::kF32;
  for (const ModelTensor& tensor : tensors.all()) {
    if (tensor.role == TensorRole::kTokenEmbd) {
      weights.embedding += tensor.tensor->bytes;
      embedding = tensor.tensor->type;
    } else if (tensor.layer < 0) {
      own_head |= tensor.role == TensorRole::kOutput;
      weights.head += tensor.tensor->bytes;
      AddType(tensor.tensor->type, tensor.tensor->bytes, &weights.head_types);
    } else if (U(tensor.layer) < weights.layers.size()) {
      AddTensor(tensor, &weights.layers[U(tensor.layer)]);
    }
  }
  if (!own_head) {
    weights.head += weights.embedding;
    AddType(embedding, weights.embedding, &weights.head_types);
  }
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
  bill[BillItem::kBuffers] = StageBufferBytes(model, shape, duties);
  bill[BillItem::kTransport] = cuda ? NcclBytes(c, shape, duties) : LinkBytes(c, shape, duties);
  if (duties.asks_experts && cuda) bill[BillItem::kStreaming] = ExpertRingBytes(model, shape);
  if (duties.asks_experts && !cuda) bill[BillItem::kTransport] += ExchangeBytes(c, shape);
  bill[BillItem::kRuntime] = cuda ? kCudaRuntime : kProcessRuntime;
  return bill;
}

MemoryBill StageHostBill(const ModelFacts& model, const DeploymentShape& shape,
                         const StageDuties& duties) {
  MemoryBill bill;
  if (duties.device == DeviceKind::kCpu) return bill;
  const ModelConfig& c = model.config;
  bill[BillItem::kTransport] = LinkBytes(c, shape, duties);
  if (duties.asks_experts) bill[BillItem::kTransport] += ExchangeBytes(c, shape);
  // Page-locked: rows of the embedding table, logits.
  if (duties.embeds) {
    bill[BillItem::kEmbedding] = model.weights.embedding;
    bill[BillItem::kBuffers] +=
        U(shape.max_tokens) * (model.weights.embedding / U(std::max(c.vocab_size, 1)));
  }
  if (duties.has_head) bill[BillItem::kBuffers] += kDecodeRows * U(c.vocab_size) * 4;
  bill[BillItem::kRuntime] =
      kCudaProcessRuntime + (c.mla.kv_lora_rank > 0 ? kMlaProcessRuntime : 0);
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
  // Inner values of every pick in f32, then activations as the kernels read them. What is exchanged
  // is in the stages' bills.
  bill[BillItem::kBuffers] =
      U(shape.max_tokens) * (U(c.moe.top_k) * U(c.moe.expert_dim) * (2 * 4 + 1) + U(c.hidden_dim));
  bill[BillItem::kRuntime] = kProcessRuntime;
  return bill;
}

}  // namespace packtrain
