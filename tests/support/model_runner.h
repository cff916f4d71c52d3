#pragma once

// Runs whole models in one process through CPU stages, for tests.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/model/config.h"
#include "common/model/tensors.h"
#include "common/model/weight_source.h"
#include "common/weights/gguf.h"
#include "worker/graph/cpu_stage.h"
#include "worker/graph/mtp_block.h"

namespace packtrain {

enum class TestWeights {
  kAsStored,
  kDequantised,  // to F32: the scalar kernels give the same bits, several times faster
};

struct TestModel {
  // CHECKs that the file is one that can be run.
  explicit TestModel(const std::string& path, TestWeights weights = TestWeights::kAsStored);

  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  std::unique_ptr<ModelTensors> tensors;
  std::unique_ptr<MappedWeights> weights;

 private:
  std::string dequantised_bytes_;
  std::unique_ptr<GgufFile> dequantised_;
};

// PACKTRAIN_ISA, else the scalar reference.
std::string TestIsa();

struct ModelRunnerOptions {
  int threads = 1;
  std::vector<int> cuts = {};  // layers at which a new stage begins
  KvCacheType kv_cache = KvCacheType::kF32;
  int context = 512;
  int num_slots = 1;
  int num_snapshots = 0;
  bool remote_experts = false;  // all routed experts behind an ExpertsClient
  std::string isa = TestIsa();
};

// Rows of one slot in a step.
struct SlotRows {
  int slot = 0;
  int start = 0;
  std::vector<TokenId> tokens = {};
  int restore_snapshot = -1;
  int save_snapshot = -1;
};

class ModelRunner {
 public:
  ModelRunner(const TestModel& model, const ModelRunnerOptions& options);
  ~ModelRunner();

  // One step; a slot that starts at 0 is reset. Returns the logits of all rows, [rows, vocab_size].
  std::span<const float> Step(std::span<const SlotRows> rows);

  // `tokens` from position `start` in chunks; logits of all of them.
  std::vector<float> Prefill(std::span<const TokenId> tokens, int start, int chunk, int slot = 0);

  // Hidden states of the last step behind the output norm, [rows, hidden_dim].
  std::span<const float> final_hidden() const { return stages_.back()->final_hidden(); }

  // Of the last stage.
  OpTimes& op_times() { return stages_.back()->op_times(); }

  // One ubatch as it is; CHECKs that it is accepted.
  void Run(const Ubatch& ubatch);
  std::span<const int32_t> pages(int slot) const { return pages_[static_cast<size_t>(slot)]; }
  std::span<const float> logits() const { return stages_.back()->logits(); }

 private:
  class Experts;
  std::vector<std::vector<int32_t>> pages_;
  std::unique_ptr<Experts> experts_;
  std::vector<std::unique_ptr<CpuStage>> stages_;
  std::vector<Bundle> bundles_;
};

// A model's MTP block with a cache for one sequence.
class MtpRunner {
 public:
  explicit MtpRunner(const TestModel& model, const ModelRunnerOptions& options);
  // tokens at start .. with the hidden states they go with; logits of all rows.
  std::span<const float> Step(int start, std::span<const TokenId> tokens,
                              std::span<const float> hidden);
  std::span<const float> final_hidden() const { return block_->final_hidden(); }

 private:
  std::vector<int32_t> pages_;
  std::unique_ptr<MtpBlock> block_;
};

TokenId ArgMax(std::span<const float> logits);  // ties to the lower id

}  // namespace packtrain
