#include "tests/support/model_runner.h"

#include <algorithm>

#include "common/base/check.h"
#include "worker/graph/layer_weights.h"

namespace packtrain {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  CHECK_MSG(value.ok(), value.status().ToString());
  return std::move(value).value();
}

}  // namespace

TestModel::TestModel(const std::string& path)
    : file(OrDie(GgufFile::Open(path))),
      config(OrDie(ReadModelConfig(*file))),
      tensors(std::make_unique<ModelTensors>(OrDie(ModelTensors::Resolve(config, *file)))),
      weights(std::make_unique<MappedWeights>(*file)) {}

// An experts worker without a wire: what is posted is computed when it is awaited.
class ModelRunner::Experts : public ExpertsClient {
 public:
  Experts(const TestModel& model, const CpuKernels* kernels, int threads) : pool_(threads) {
    WeightBinder binder(model.config, *model.tensors, *model.weights, *kernels);
    std::vector<ExpertWeights> layers;
    for (int layer = 0; layer < model.config.num_layers; ++layer) {
      layers.push_back(binder.Experts(layer));
    }
    CHECK_MSG(binder.status().ok(), binder.status().ToString());
    experts_ = std::make_unique<LocalExperts>(OpContext{.kernels = kernels, .pool = &pool_}, 0,
                                              std::move(layers));
  }
  absl::Status Post(const ExpertsRequest& request) override {
    request_ = request;
    return absl::OkStatus();
  }
  absl::Status Await(float* y) override { return experts_->Compute(request_, y); }

 private:
  ThreadPool pool_;
  std::unique_ptr<LocalExperts> experts_;
  ExpertsRequest request_;
};

ModelRunner::ModelRunner(const TestModel& model, const ModelRunnerOptions& options)
    : model_(model) {
  const CpuKernels* kernels = OrDie(SelectCpuKernels(options.isa));
  if (options.remote_experts) {
    experts_ = std::make_unique<Experts>(model, kernels, options.threads);
  }
  const int pages = (options.context + kPagePositions - 1) / kPagePositions;
  num_pages_ = pages * options.num_slots;
  pages_.resize(static_cast<size_t>(options.num_slots));
  // Interleaved and backwards, so that no position lies where a contiguous cache would have it.
  for (int i = 0; i < num_pages_; ++i) {
    pages_[static_cast<size_t>(i % options.num_slots)].push_back(num_pages_ - 1 - i);
  }
  std::vector<int> cuts = options.cuts;
  cuts.insert(cuts.begin(), 0);
  cuts.push_back(model.config.num_layers);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    StageSpec spec;
    spec.first_layer = cuts[i];
    spec.last_layer = cuts[i + 1];
    spec.embeds = i == 0;
    spec.has_head = i + 2 == cuts.size();
    spec.kv_cache = options.kv_cache;
    spec.num_pages = num_pages_;
    spec.num_slots = options.num_slots;
    spec.num_snapshots = options.num_snapshots;
    spec.max_tokens = options.context;
    spec.threads = options.threads;
    if (!options.remote_experts) spec.resident_last = model.config.num_layers;
    stages_.push_back(OrDie(CpuStage::Create(model.config, *model.tensors, *model.weights, spec,
                                             {.kernels = kernels, .experts = experts_.get()})));
  }
  bundles_.resize(stages_.size());
}

ModelRunner::~ModelRunner() = default;

std::span<const float> ModelRunner::Step(std::span<const SlotRows> rows) {
  std::vector<UbatchSequence> sequences;
  Ubatch ubatch;
  for (const SlotRows& slot : rows) {
    UbatchSequence& sequence = sequences.emplace_back();
    sequence.slot = slot.slot;
    sequence.start = slot.start;
    sequence.rows = static_cast<int32_t>(slot.tokens.size());
    sequence.tokens = slot.tokens;
    sequence.pages = pages(slot.slot);
    sequence.reset = slot.start == 0;
    sequence.restore_snapshot = slot.restore_snapshot;
    sequence.save_snapshot = slot.save_snapshot;
    sequence.logits_all = true;
    ubatch.rows += sequence.rows;
  }
  ubatch.sequences = sequences;
  const Bundle none;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const absl::Status status =
        stages_[i]->Run(ubatch, i == 0 ? none : bundles_[i - 1], &bundles_[i]);
    CHECK_MSG(status.ok(), status.ToString());
  }
  return stages_.back()->logits();
}

std::vector<float> ModelRunner::Prefill(std::span<const TokenId> tokens, int start, int chunk,
                                        int slot) {
  std::vector<float> logits;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
    const auto part =
        tokens.subspan(first, std::min(tokens.size() - first, static_cast<size_t>(chunk)));
    const SlotRows rows = {.slot = slot,
                           .start = start + static_cast<int>(first),
                           .tokens = {part.begin(), part.end()}};
    const std::span<const float> out = Step({&rows, 1});
    logits.insert(logits.end(), out.begin(), out.end());
  }
  return logits;
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace packtrain
