#include "tests/support/placement_checks.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"

namespace packtrain {
namespace {

size_t S(int value) { return static_cast<size_t>(value); }

uint64_t Bytes(double value) { return static_cast<uint64_t>(value); }

// Cache bytes of `values` numbers, from the formats' block sizes.
uint64_t CacheBytes(KvCacheType type, int values) {
  const uint64_t n = static_cast<uint64_t>(values), blocks = (n + 31) / 32;
  switch (type) {
    case KvCacheType::kF32:
      return 4 * n;
    case KvCacheType::kF16:
      return 2 * n;
    case KvCacheType::kQ8_0:
      return 34 * blocks;
    case KvCacheType::kQ4_1:
      return 20 * blocks;
  }
  return 0;
}

// One layer without its experts.
uint64_t LayerBytes(const ModelFacts& model, const DeploymentShape& shape, bool cuda, int layer) {
  const ModelConfig& c = model.config;
  const LayerConfig& l = c.layers[S(layer)];
  const LayerWeightBytes& w = model.weights.layers[S(layer)];
  uint64_t row = 0, state = 0;
  if (l.attention == AttentionKind::kMla) {
    row = CacheBytes(shape.kv_cache, c.mla.kv_lora_rank + c.rope.dims);
  } else if (l.attention == AttentionKind::kGqa) {
    row = static_cast<uint64_t>(c.gqa.num_kv_heads) *
          (CacheBytes(shape.kv_cache, c.gqa.key_dim) + CacheBytes(shape.kv_cache, c.gqa.value_dim));
  } else {
    const int64_t channels =
        (2 * c.delta_net.num_key_heads + c.delta_net.num_value_heads) * c.delta_net.head_dim;
    state = static_cast<uint64_t>(
        4 * ((c.delta_net.conv_kernel - 1) * channels +
             int64_t{c.delta_net.num_value_heads} * c.delta_net.head_dim * c.delta_net.head_dim));
  }
  if (l.indexer == IndexerKind::kFull) row += CacheBytes(shape.kv_cache, c.indexer.head_dim);
  return w.attention + w.indexer + w.feed_forward +
         row * 64 * static_cast<uint64_t>(shape.num_pages) +
         state * static_cast<uint64_t>(shape.num_slots + shape.num_snapshots) +
         (cuda ? uint64_t{1} << 20 : 0);
}

// Scratch memory as a CUDA stage takes it: arrays one on the other, given back in reverse.
class ScratchStack {
 public:
  explicit ScratchStack(uint64_t rows) : rows_(rows) {}
  // Values of every row: f32 takes 4 bytes, what products read 2, both 6.
  void Take(int values, int bytes = 4) { TakeOf(rows_, values, bytes); }
  void TakeOf(uint64_t rows, int values, int bytes = 4) {
    TakeBytes(rows * static_cast<uint64_t>(values) * static_cast<uint64_t>(bytes));
  }
  void TakeBytes(uint64_t bytes) {
    used_ += bytes;
    peak_ = std::max(peak_, used_);
  }
  uint64_t rows() const { return rows_; }
  uint64_t used() const { return used_; }
  void GiveBackTo(uint64_t used) { used_ = used; }
  uint64_t peak() const { return peak_; }

 private:
  const uint64_t rows_;
  uint64_t used_ = 0, peak_ = 0;
};

void TakeAttention(const ModelConfig& c, const LayerConfig& layer, uint64_t rows,
                   uint64_t positions, ScratchStack* stack) {
  const int heads = c.num_heads;
  if (layer.attention == AttentionKind::kMla) {
    const int rank = c.mla.kv_lora_rank, rope = c.rope.dims;
    stack->Take(rank + rope);  // new rows of the cache
    stack->Take(c.mla.q_lora_rank, 6);
    const uint64_t before = stack->used();
    if (layer.indexer == IndexerKind::kFull) {
      stack->Take(c.indexer.head_dim);
      if (positions > static_cast<uint64_t>(c.indexer.top_k)) {
        stack->Take(c.indexer.num_heads * (c.indexer.head_dim + 1));
        stack->TakeBytes(std::min<uint64_t>(rows * positions * 4, 64 << 20));  // scores
      }
      stack->GiveBackTo(before);
    }
    // At most 2048 rows at once, about as many each time.
    const uint64_t times = (rows + 2047) / 2048, some = (rows + times - 1) / times;
    stack->TakeOf(some, heads * (c.mla.nope_dim + rope));  // queries
    stack->TakeOf(some, heads * (rank + rope));            // the same in latent space
    const uint64_t absorbed = stack->used();
    stack->TakeOf(some, heads * c.mla.nope_dim, 2);
    stack->GiveBackTo(absorbed);
    stack->TakeOf(some, heads * rank, 2);  // attended
    stack->TakeOf(some, heads * c.mla.value_dim, 2);
  } else if (layer.attention == AttentionKind::kGqa) {
    stack->Take(heads * c.gqa.key_dim * (c.gqa.output_gate ? 2 : 1));
    stack->Take(c.gqa.num_kv_heads * (c.gqa.key_dim + c.gqa.value_dim));
    stack->Take(heads * c.gqa.key_dim);
    stack->Take(heads * c.gqa.value_dim, 6);
  } else {
    const int inner = c.delta_net.num_value_heads * c.delta_net.head_dim;
    const int channels = inner + 2 * c.delta_net.num_key_heads * c.delta_net.head_dim;
    for (int i = 0; i < 2; ++i) {
      stack->Take(channels);
      stack->Take(inner);
      stack->Take(c.delta_net.num_value_heads);
    }
    stack->Take(inner, 2);
  }
}

// Queries, results, and those of 32 parts of the context with a maximum and a sum each.
void TakeDecode(const ModelConfig& c, const LayerConfig& layer, ScratchStack* stack) {
  if (layer.attention == AttentionKind::kMla) {
    stack->Take(c.num_heads * (c.mla.nope_dim + c.rope.dims));
    stack->Take(c.num_heads * (c.mla.kv_lora_rank + c.rope.dims));
    stack->Take(c.num_heads * c.mla.kv_lora_rank, 6);
    stack->Take(c.num_heads * 32 * (c.mla.kv_lora_rank + 2));
  } else if (layer.attention == AttentionKind::kGqa) {
    stack->Take(c.num_heads * c.gqa.key_dim);
    stack->Take(c.num_heads * c.gqa.value_dim, 6);
    stack->Take(c.num_heads * 32 * (c.gqa.value_dim + 2));
  }
}

void TakeFeedForward(const ModelConfig& c, const LayerConfig& layer, ScratchStack* stack) {
  const auto dense = [&](int width) {
    stack->Take(2 * width);
    stack->Take(width, 2);
  };
  if (layer.ffn == FfnKind::kDense) return dense(c.dense_dim);
  if (c.moe.shared_dim > 0) {
    stack->Take(c.hidden_dim + 1);
    dense(c.moe.shared_dim);
  }
  stack->Take(c.moe.num_experts + 4 * c.moe.top_k);  // router; picks and their order
  const auto pair = static_cast<uint64_t>(std::max(4 * c.hidden_dim, 8 * c.moe.expert_dim) +
                                          2 * c.moe.expert_dim);
  stack->TakeBytes(stack->rows() * static_cast<uint64_t>(c.moe.top_k) * pair);
}

uint64_t CpuScratchPerRow(const ModelConfig& c) {
  uint64_t widest = 0;
  for (const LayerConfig& layer : c.layers) {
    const int heads = c.num_heads;
    int attention = 0;
    if (layer.attention == AttentionKind::kMla) {
      attention = c.mla.q_lora_rank + heads * 2 * (c.mla.nope_dim + c.rope.dims) +
                  heads * (2 * c.mla.kv_lora_rank + c.mla.value_dim);
      if (layer.indexer != IndexerKind::kNone) {
        attention += c.indexer.num_heads * c.indexer.head_dim + c.indexer.num_heads;
      }
    } else if (layer.attention == AttentionKind::kGqa) {
      attention = heads * (c.gqa.key_dim * (c.gqa.output_gate ? 2 : 1) + c.gqa.value_dim) +
                  c.gqa.num_kv_heads * (c.gqa.key_dim + c.gqa.value_dim);
    } else {
      const int inner = c.delta_net.num_value_heads * c.delta_net.head_dim;
      attention = 5 * inner + 4 * c.delta_net.num_key_heads * c.delta_net.head_dim;
    }
    const int ffn = layer.ffn == FfnKind::kDense
                        ? 2 * c.dense_dim
                        : 2 * c.moe.shared_dim + c.moe.num_experts +
                              2 * c.moe.top_k * (c.moe.expert_dim + c.hidden_dim);
    widest = std::max({widest, static_cast<uint64_t>(attention), static_cast<uint64_t>(ffn)});
  }
  return widest;
}

uint64_t Rows(const DeploymentShape& shape) { return static_cast<uint64_t>(shape.max_tokens); }

// One row each way, with picks and their weights.
uint64_t ExchangeBytes(const ModelConfig& c, const DeploymentShape& shape) {
  return Rows(shape) * static_cast<uint64_t>(8 * (c.hidden_dim + c.moe.top_k));
}

// A bundle from the stage before, three to the one behind.
uint64_t HopBytes(const ModelConfig& c, const DeploymentShape& shape, bool first, bool last) {
  const uint64_t bundle = Rows(shape) * static_cast<uint64_t>(4 * (c.hidden_dim + c.indexer.top_k));
  return (first ? 0 : bundle) + (last ? 0 : 3 * bundle);
}

bool Streams(const DeploymentShape& shape) {
  return shape.streamed_rows > 0 && shape.max_tokens >= shape.streamed_rows;
}

// The ring that experts are copied through: pieces of whole experts, 128 MiB at most, three of them
// for 512 rows and one more for every 512 further ones up to eight.
uint64_t RingBytes(const ModelFacts& model, const DeploymentShape& shape) {
  uint64_t tensor = 0;
  for (const LayerWeightBytes& l : model.weights.layers) tensor = std::max(tensor, l.experts / 3);
  const uint64_t expert = std::max<uint64_t>(
      tensor / static_cast<uint64_t>(std::max(model.config.moe.num_experts, 1)), 1);
  uint64_t piece = (uint64_t{128} << 20) / expert * expert;
  piece = std::max(piece, expert);
  const uint64_t pieces =
      shape.max_tokens < 1024 ? 3 : std::min<uint64_t>(2 + Rows(shape) / 512, 8);
  return pieces * std::min(piece, tensor);
}

// What NCCL takes of a card: its code, 64 MiB a side, and the bundles.
uint64_t NcclBytes(const ModelConfig& c, const DeploymentShape& shape, bool first, bool last) {
  if (first && last) return 0;
  const uint64_t sides = first || last ? 1 : 2;
  return (uint64_t{376} << 20) + sides * (uint64_t{64} << 20) + HopBytes(c, shape, first, last);
}

uint64_t CudaBaseBytes(const ModelFacts& model, const DeploymentShape& shape, bool first, bool last,
                       bool asks, bool several_cards) {
  const ModelConfig& c = model.config;
  const uint64_t positions = std::min(static_cast<uint64_t>(c.context_length),
                                      static_cast<uint64_t>(shape.num_pages) * 64);
  uint64_t widest = 0;
  for (const LayerConfig& layer : c.layers) {
    for (const bool attention : {true, false}) {
      ScratchStack stack(Rows(shape));
      stack.Take(c.hidden_dim, 6);
      if (attention) {
        TakeAttention(c, layer, Rows(shape), positions, &stack);
      } else {
        TakeFeedForward(c, layer, &stack);
      }
      widest = std::max(widest, stack.peak());
    }
    ScratchStack step(std::min<uint64_t>(Rows(shape), 8));
    step.TakeOf(Rows(shape), c.hidden_dim, 6);
    TakeDecode(c, layer, &step);
    widest = std::max(widest, step.peak());
  }
  uint64_t bytes = widest + (several_cards ? NcclBytes(c, shape, first, last) : 0);
  // Residual and its increment, angles, choice of sparse attention, positions and tables.
  bytes += Rows(shape) *
           static_cast<uint64_t>(8 * c.hidden_dim + 4 * c.rope.dims + 4 * c.indexer.top_k + 8);
  bytes += static_cast<uint64_t>(shape.num_slots) * (positions / 64) * 4;
  if (first) {
    bytes += Rows(shape) * (model.weights.embedding / static_cast<uint64_t>(c.vocab_size));
  }
  if (last) bytes += model.weights.head + 8 * static_cast<uint64_t>(c.vocab_size) * 4;
  if (shape.max_tokens > 8) bytes += uint64_t{128} << 20;  // unpacked weights
  if (asks && Streams(shape)) bytes += RingBytes(model, shape);
  return bytes + (uint64_t{560} << 20);  // CUDA itself
}

uint64_t CudaHostBytes(const ModelFacts& model, const DeploymentShape& shape, bool first, bool last,
                       bool asks) {
  const ModelConfig& c = model.config;
  uint64_t bytes = uint64_t{c.mla.kv_lora_rank > 0 ? 420U : 336U} << 20;  // the process
  bytes += HopBytes(c, shape, first, last);
  // Page-locked: embedded rows, a decode step's logits.
  if (first) {
    const uint64_t row = model.weights.embedding / static_cast<uint64_t>(c.vocab_size);
    bytes += model.weights.embedding + Rows(shape) * row;
  }
  if (last) bytes += 32 * static_cast<uint64_t>(c.vocab_size);
  if (asks) bytes += ExchangeBytes(c, shape);
  return bytes;
}

uint64_t CpuBaseBytes(const ModelFacts& model, const DeploymentShape& shape, bool first, bool last,
                      bool asks) {
  const ModelConfig& c = model.config;
  uint64_t bytes = Rows(shape) * static_cast<uint64_t>(12 * c.hidden_dim + 4 * c.indexer.top_k);
  bytes += std::min<uint64_t>(Rows(shape), 512) * CpuScratchPerRow(c) * 4;
  bytes += HopBytes(c, shape, first, last) + (uint64_t{8} << 20);
  if (asks) bytes += ExchangeBytes(c, shape);
  if (first) bytes += model.weights.embedding;
  if (last) {
    bytes += model.weights.head + static_cast<uint64_t>(std::max(shape.num_slots, 64)) *
                                      static_cast<uint64_t>(c.vocab_size) * 4;
  }
  return bytes;
}

// Every pick's inner values twice in f32 and once as bytes, and the activations as bytes. Stages on
// GPUs of its host leave only few rows to it.
uint64_t ExpertsBaseBytes(const ModelFacts& model, const DeploymentPlacement& placed,
                          const ExpertsPlacement& experts) {
  const MoeConfig& moe = model.config.moe;
  uint64_t rows = Rows(placed.shape);
  bool long_ones = false;
  for (const StagePlacement& s : placed.stages) {
    for (const ExpertsPart& part : s.remote_experts) {
      if (&placed.experts[S(part.worker)] != &experts) continue;
      long_ones |= s.device.is_cpu() || s.device.host != experts.device.host;
    }
  }
  if (!long_ones && Streams(placed.shape)) {
    rows = static_cast<uint64_t>(placed.shape.streamed_rows) - 1;
  }
  return rows * static_cast<uint64_t>(9 * moe.top_k * moe.expert_dim + model.config.hidden_dim) +
         (uint64_t{8} << 20);
}

int PlacedLayers(const DeploymentWish& wish) {
  return wish.mtp ? static_cast<int>(wish.model->weights.layers.size())
                  : wish.model->config.num_layers;
}

std::string RangeFault(const DeploymentWish& wish, const DeploymentPlacement& placed) {
  const int layers = PlacedLayers(wish);
  int next = 0;
  for (const StagePlacement& s : placed.stages) {
    if (s.layers.first != next || s.layers.last <= s.layers.first) {
      return absl::StrCat("stage ", s.device.text(), " begins at ", s.layers.first, ", not ", next);
    }
    next = s.layers.last;
  }
  if (next != layers) return absl::StrCat("layers end at ", next, ", not ", layers);
  std::vector<int> owners(S(layers), 0);
  for (const StagePlacement& s : placed.stages) {
    for (int l = s.resident_experts.first; l < s.resident_experts.last; ++l) {
      if (l < s.layers.first || l >= s.layers.last) {
        return absl::StrCat("resident layer ", l, " is not on ", s.device.text());
      }
      ++owners[S(l)];
    }
    for (const ExpertsPart& part : s.remote_experts) {
      for (int l = part.layers.first; l < part.layers.last; ++l) {
        if (l < s.layers.first || l >= s.layers.last) return "experts of a foreign layer";
        const auto& ranges = placed.experts.at(S(part.worker)).layers;
        if (std::none_of(ranges.begin(), ranges.end(),
                         [&](const LayerRange& r) { return r.first <= l && l < r.last; })) {
          return absl::StrCat("the experts worker does not hold layer ", l);
        }
        ++owners[S(l)];
      }
    }
  }
  for (int l = 0; l < layers; ++l) {
    const bool moe = wish.model->weights.layers[S(l)].experts > 0;
    if (owners[S(l)] != (moe ? 1 : 0)) {
      return absl::StrCat("experts of layer ", l, " have ", owners[S(l)], " owners");
    }
  }
  return "";
}

std::string PinFault(const DeploymentWish& wish, const DeploymentPlacement& placed) {
  const int trunk = wish.model->config.num_layers;
  for (size_t i = 0; i < wish.workers.size(); ++i) {
    const WorkerWish& w = wish.workers[i];
    const auto stage = std::find_if(placed.stages.begin(), placed.stages.end(),
                                    [&](const StagePlacement& s) { return s.device == w.device; });
    if (!w.device.is_cpu() && stage == placed.stages.end()) {
      return absl::StrCat(w.device.text(), " is listed and not used");
    }
    if (stage != placed.stages.end() && !w.device.is_cpu()) {
      LayerRange layers = stage->layers;
      layers.last = std::min(layers.last, trunk);
      if (w.layers && layers != *w.layers) return absl::StrCat(w.device.text(), ": layers moved");
      for (int l = stage->layers.first; w.resident_experts && l < stage->layers.last; ++l) {
        const bool pinned = l >= w.resident_experts->first && l < w.resident_experts->last &&
                            wish.model->weights.layers[S(l)].experts > 0;
        const bool resident =
            l >= stage->resident_experts.first && l < stage->resident_experts.last;
        if (pinned != resident) return absl::StrCat(w.device.text(), ": residents moved");
      }
    }
    if (w.experts.empty()) continue;
    for (int l = 0; l < trunk; ++l) {
      const bool pinned = std::any_of(w.experts.begin(), w.experts.end(), [&](const LayerRange& r) {
        return r.first <= l && l < r.last;
      });
      bool served = false;
      for (const ExpertsPlacement& e : placed.experts) {
        for (const LayerRange& r : e.layers) {
          served |= S(e.wish) == i && r.first <= l && l < r.last;
        }
      }
      if (pinned != served) return absl::StrCat("experts of layer ", l, " moved");
    }
  }
  return "";
}

}  // namespace

int Pick(TestRng* rng, int low, int high) {
  return low + static_cast<int>((*rng)() % static_cast<uint64_t>(high - low + 1));
}

ModelFacts GlmLikeModel(int layers, bool mtp, double expert_bits) {
  ModelFacts model;
  ModelConfig& c = model.config;
  c.name = "glm-like";
  c.vocab_size = 154880;
  c.hidden_dim = 6144;
  c.context_length = 1048576;
  c.num_heads = 64;
  c.num_layers = layers;
  c.num_mtp_layers = mtp ? 1 : 0;
  c.dense_dim = 12288;
  c.rope.dims = 64;
  c.mla = {2048, 512, 192, 256};
  c.indexer.num_heads = 32;
  c.indexer.head_dim = 128;
  c.indexer.top_k = 2048;
  c.moe.num_experts = 256;
  c.moe.top_k = 8;
  c.moe.expert_dim = 2048;
  c.moe.shared_dim = 2048;
  for (int l = 0; l < layers + c.num_mtp_layers; ++l) {
    const bool full = l < 3 || l % 4 == 2 || l >= layers;
    const bool dense = l < 3;
    c.layers.push_back({AttentionKind::kMla, full ? IndexerKind::kFull : IndexerKind::kShared,
                        dense ? FfnKind::kDense : FfnKind::kMoe});
    LayerWeightBytes w;
    w.parameters = 165'019'648 + (full ? 9'371'904 : 0) + (dense ? 226'492'416 : 39'321'600);
    w.attention = Bytes(165'019'648 * 5.6 / 8);
    w.indexer = full ? Bytes(9'371'904 * 8.5 / 8) : 0;
    w.shared_expert = dense ? 0 : Bytes(37'748'736 * 6.5625 / 8);
    w.feed_forward = dense ? Bytes(226'492'416 * 6.5625 / 8) : w.shared_expert + 1'572'864 * 4;
    w.expert_parameters = dense ? 0 : uint64_t{256} * 37'748'736;
    w.experts = Bytes(static_cast<double>(w.expert_parameters) * expert_bits / 8);
    model.weights.layers.push_back(w);
  }
  model.weights.embedding = Bytes(951'582'720 * 4.5 / 8);
  model.weights.head = Bytes(951'582'720 * 6.5625 / 8);
  return model;
}

ModelFacts RandomModel(TestRng* rng, int max_layers) {
  const int kind = Pick(rng, 0, 3);
  ModelFacts model = GlmLikeModel(Pick(rng, 2, max_layers), Pick(rng, 0, 3) == 0, 2.4);
  ModelConfig& c = model.config;
  c.context_length = 1 << Pick(rng, 14, 20);
  const int dense = Pick(rng, 0, 3);
  const double scale = 0.02 * Pick(rng, 1, 50);  // of all weights
  for (size_t l = 0; l < c.layers.size(); ++l) {
    LayerConfig& layer = c.layers[l];
    LayerWeightBytes& w = model.weights.layers[l];
    if (kind != 0) layer.indexer = IndexerKind::kNone;
    if (kind == 2 || kind == 3) layer.attention = AttentionKind::kGqa;
    if (kind == 3 && l % 4 != 3 && static_cast<int>(l) < c.num_layers) {
      layer.attention = AttentionKind::kGatedDeltaNet;
    }
    if (layer.indexer == IndexerKind::kNone) w.indexer = 0;
    const bool moe = static_cast<int>(l) >= dense;
    layer.ffn = moe ? FfnKind::kMoe : FfnKind::kDense;
    w.experts = moe ? Bytes(3e9 * scale * Pick(rng, 80, 120) / 100) : 0;
    w.expert_parameters = w.experts * 3;
    w.attention = Bytes(static_cast<double>(w.attention) * scale);
    w.shared_expert = moe ? Bytes(3e7 * scale) : 0;
    w.feed_forward = moe ? w.shared_expert + 1'000'000 : Bytes(2e8 * scale);
  }
  if (kind == 2 || kind == 3) {
    c.gqa.num_kv_heads = Pick(rng, 1, 8);
    c.gqa.key_dim = c.gqa.value_dim = 128;
  }
  if (kind == 3) {
    c.delta_net = {.num_key_heads = 16, .num_value_heads = 32, .head_dim = 128, .conv_kernel = 4};
  }
  c.moe.num_experts = 1 << Pick(rng, 3, 8);
  c.moe.top_k = Pick(rng, 1, 8);
  return model;
}

GpuFacts TestGpu(int index, double memory_gib, double read, double link) {
  GpuFacts gpu;
  gpu.index = index;
  gpu.name = "test";
  gpu.memory_bytes = gpu.free_bytes = Bytes(memory_gib * (1 << 30));
  gpu.read_gb_per_s = read;
  gpu.bf16_tflops = read / 12;
  gpu.to_device_gb_per_s = gpu.from_device_gb_per_s = link;
  return gpu;
}

HostFacts TestHost(const std::string& name, int cores, double memory_gib, double dram_read) {
  HostFacts host;
  host.name = name;
  host.cpu.cores = host.cpu.threads = cores;
  host.memory.total_bytes = host.memory.available_bytes = Bytes(memory_gib * (1 << 30));
  host.dram_read = {{cores, dram_read}};
  return host;
}

Rig RandomRig(TestRng* rng, const ModelFacts& model, int max_hosts, int max_gpus) {
  const double size = static_cast<double>(model.weights.total()) / (1 << 30);
  Rig rig;
  rig.name = "random";
  const int hosts = Pick(rng, 1, max_hosts);
  const int gpus = Pick(rng, 0, max_gpus);
  for (int h = 0; h < hosts; ++h) {
    rig.hosts.push_back(TestHost(absl::StrCat("box", h + 1), Pick(rng, 2, 32),
                                 5 + size * Pick(rng, 5, 150) / 100, Pick(rng, 20, 400)));
  }
  constexpr double kLinks[] = {0.8, 3, 6, 12, 25, 50};
  for (int g = 0; g < gpus; ++g) {
    HostFacts& host = rig.hosts[S(Pick(rng, 0, hosts - 1))];
    const double memory = 2 + size * Pick(rng, 3, 80) / 100;
    host.gpus.push_back(TestGpu(static_cast<int>(host.gpus.size()), memory, Pick(rng, 300, 3000),
                                kLinks[Pick(rng, 0, 5)]));
  }
  return rig;
}

std::map<std::string, uint64_t> Recount(const PlanRequest& request, const Placement& placement) {
  std::map<std::string, uint64_t> bytes;
  for (size_t d = 0; d < placement.deployments.size(); ++d) {
    const DeploymentPlacement& placed = placement.deployments[d];
    const ModelFacts& model = *request.deployments[d].model;
    std::set<std::string> cards;
    for (const StagePlacement& s : placed.stages) {
      if (!s.device.is_cpu()) cards.insert(s.device.text());
    }
    for (size_t i = 0; i < placed.stages.size(); ++i) {
      const StagePlacement& s = placed.stages[i];
      const bool cuda = !s.device.is_cpu();
      uint64_t& device = bytes[s.device.text()];
      for (int l = s.layers.first; l < s.layers.last; ++l) {
        device += LayerBytes(model, placed.shape, cuda, l);
        if (l >= s.resident_experts.first && l < s.resident_experts.last) {
          device += model.weights.layers[S(l)].experts;
        }
      }
      const bool asks = !s.remote_experts.empty();
      const bool first = i == 0, last = i + 1 == placed.stages.size();
      device += cuda ? CudaBaseBytes(model, placed.shape, first, last, asks, cards.size() > 1)
                     : CpuBaseBytes(model, placed.shape, first, last, asks);
      if (cuda) {
        bytes[s.device.host + "/cpu"] += CudaHostBytes(model, placed.shape, first, last, asks);
      }
    }
    for (const ExpertsPlacement& e : placed.experts) {
      uint64_t& device = bytes[e.device.text()];
      device += ExpertsBaseBytes(model, placed, e);
      for (const LayerRange& range : e.layers) {
        for (int l = range.first; l < range.last; ++l) device += model.weights.layers[S(l)].experts;
      }
    }
  }
  return bytes;
}

std::string PlanFault(const PlanRequest& request, const Placement& placement) {
  if (placement.deployments.size() != request.deployments.size()) return "a deployment is missing";
  for (size_t d = 0; d < placement.deployments.size(); ++d) {
    const DeploymentWish& wish = request.deployments[d];
    const DeploymentPlacement& placed = placement.deployments[d];
    for (const std::string& fault : {RangeFault(wish, placed), PinFault(wish, placed)}) {
      if (!fault.empty()) return absl::StrCat(wish.name, ": ", fault);
    }
    if (placed.shape.num_pages * 64 < placed.context) return "the KV cache is short";
    if (!(placed.speed.decode_ms > 0) || !std::isfinite(placed.speed.decode_ms) ||
        !(placed.speed.prefill_tokens_per_s > 0)) {
      return "no speed";
    }
  }
  std::map<std::string, uint64_t> bytes = Recount(request, placement);
  for (const DeviceTotal& device : placement.devices) {
    if (device.used() != bytes[device.device.text()]) {
      return absl::StrCat(device.device.text(), ": billed ", device.used(), ", recounted ",
                          bytes[device.device.text()]);
    }
  }
  for (const HostFacts& host : request.rig.hosts) {
    const uint64_t ram = host.memory.available_bytes;
    const bool known = ram > 0 || host.memory.total_bytes > 0;
    if (known && bytes[host.name + "/cpu"] > ram - std::min(ram, uint64_t{2} << 30)) {
      return host.name + ": RAM is over-committed";
    }
    for (const GpuFacts& gpu : host.gpus) {
      const std::string name = absl::StrCat(host.name, "/cuda:", gpu.index);
      if (gpu.memory_bytes == 0) continue;  // not known
      if (static_cast<double>(bytes[name]) > 0.95 * static_cast<double>(gpu.memory_bytes)) {
        return absl::StrCat(name, " is over-committed: ", bytes[name], " of ", gpu.memory_bytes);
      }
    }
  }
  return "";
}

}  // namespace packtrain
