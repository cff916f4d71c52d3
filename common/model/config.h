#pragma once

// What a model is: its sizes and, layer by layer, its kinds of attention and feed-forward, read
// from a weight file's metadata. Everything else (loader, planner, graph) reads this and never the
// architecture's name.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace packtrain {

class GgufFile;
struct ArchDescription;

enum class AttentionKind : uint8_t { kMla, kGqa, kGatedDeltaNet };
// kFull: a layer that scores keys itself; kShared: it uses the choice of the full layer before it.
enum class IndexerKind : uint8_t { kNone, kFull, kShared };
enum class FfnKind : uint8_t { kDense, kMoe };
// Which elements rotate together: (2i, 2i+1) or (i, i + dims/2).
enum class RopeKind : uint8_t { kNorm, kNeox };
// Values as in the metadata key expert_gating_func.
enum class GatingKind : uint8_t { kSoftmax = 1, kSigmoid = 2 };

struct LayerConfig {
  AttentionKind attention = AttentionKind::kGqa;
  IndexerKind indexer = IndexerKind::kNone;
  FfnKind ffn = FfnKind::kMoe;
};

// theta_i = base^(-2i/dims), slowed by `factor`: all pairs alike, or by YaRN's ramp.
struct RopeConfig {
  RopeKind kind = RopeKind::kNorm;
  int dims = 0;  // rotated elements of a head
  float base = 10000;
  float factor = 1;
  bool yarn = false;
  int original_context = 0;  // YaRN: positions the model was trained with
};

struct MlaConfig {
  int q_lora_rank = 0;  // 0: queries are projected in one step
  int kv_lora_rank = 0;
  int nope_dim = 0;   // of a query or key head; rope.dims more are rotated
  int value_dim = 0;  // of a value head
};

struct IndexerConfig {
  int num_heads = 0;
  int head_dim = 0;
  int top_k = 0;
  RopeKind rope = RopeKind::kNorm;
};

struct GqaConfig {
  int num_kv_heads = 0;
  int key_dim = 0;    // of a query or key head
  int value_dim = 0;  // of a value head
  bool output_gate = false;
};

struct DeltaNetConfig {
  int num_key_heads = 0;
  int num_value_heads = 0;  // a multiple of num_key_heads
  int head_dim = 0;         // of keys and values
  int conv_kernel = 0;

  int conv_channels() const { return (2 * num_key_heads + num_value_heads) * head_dim; }
  int inner_dim() const { return num_value_heads * head_dim; }
};

struct MoeConfig {
  int num_experts = 0;
  int top_k = 0;
  int expert_dim = 0;  // width of a routed expert
  int shared_dim = 0;  // width of the shared expert, 0: none
  GatingKind gating = GatingKind::kSoftmax;
  bool normalise = false;
  float scale = 1;
  int num_groups = 1;
  int groups_used = 1;
};

struct ModelConfig {
  const ArchDescription* arch = nullptr;
  std::string name;  // general.name, may be empty
  int vocab_size = 0;
  int hidden_dim = 0;
  int context_length = 0;
  int num_heads = 0;
  int num_layers = 0;      // of the trunk
  int num_mtp_layers = 0;  // declared; they follow the trunk's
  float rms_eps = 0;
  float attention_scale = 1;  // factor of the scores
  int dense_dim = 0;          // width of dense feed-forward layers
  RopeConfig rope;
  MlaConfig mla;
  IndexerConfig indexer;
  GqaConfig gqa;
  DeltaNetConfig delta_net;
  MoeConfig moe;
  std::vector<LayerConfig> layers;  // num_layers + num_mtp_layers

  bool has_recurrent_state() const { return delta_net.num_value_heads > 0; }
};

// Errors: INVALID_ARGUMENT for an architecture that is not supported and for a missing, malformed
// or contradictory key; one line that names the file, the key, its value and what is allowed.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

}  // namespace packtrain
