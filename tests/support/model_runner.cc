#include "tests/support/model_runner.h"

#include <algorithm>
#include <cstdlib>

#include "common/base/check.h"
#include "common/quant/codec.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_files.h"
#include "worker/graph/layer_weights.h"

namespace packtrain {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  CHECK_MSG(value.ok(), value.status().ToString());
  return std::move(value).value();
}

// A file with the tensors of `file` in F32, without metadata.
std::string Dequantise(const GgufFile& file) {
  GgufWriter writer;
  std::vector<float> values;
  for (const GgufTensor& tensor : file.tensors()) {
    values.resize(tensor.elements());
    Decode(tensor.type, file.Data(tensor).data(), values.size(), values.data());
    writer.AddF32Tensor(tensor.name, tensor.dims, values);
  }
  return writer.Finish();
}

}  // namespace

std::string TestIsa() {
  const char* isa = std::getenv("PACKTRAIN_ISA");
  return isa == nullptr || *isa == '\0' ? "scalar" : isa;
}

TestModel::TestModel(const std::string& path, TestWeights how)
    : file(OrDie(GgufFile::Open(path))), config(OrDie(ReadModelConfig(*file))) {
  const GgufFile* source = file.get();
  if (how == TestWeights::kDequantised) {
    dequantised_bytes_ = Dequantise(*file);
    dequantised_ = OrDie(GgufFile::Parse(AsBytes(dequantised_bytes_), path));
    source = dequantised_.get();
  }
  tensors = std::make_unique<ModelTensors>(OrDie(ModelTensors::Resolve(config, *source)));
  weights = std::make_unique<MappedWeights>(*source);
}

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

ModelRunner::ModelRunner(const TestModel& model, const ModelRunnerOptions& options) {
  const CpuKernels* kernels = OrDie(SelectCpuKernels(options.isa));
  if (options.remote_experts) {
    experts_ = std::make_unique<Experts>(model, kernels, options.threads);
  }
  const int pages = (options.context + kPagePositions - 1) / kPagePositions;
  const int num_pages = pages * options.num_slots;
  pages_.resize(static_cast<size_t>(options.num_slots));
  // Interleaved and backwards, so that no position lies where a contiguous cache would have it.
  for (int i = 0; i < num_pages; ++i) {
    pages_[static_cast<size_t>(i % options.num_slots)].push_back(num_pages - 1 - i);
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
    spec.num_pages = num_pages;
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
  Run(ubatch);
  return logits();
}

void ModelRunner::Run(const Ubatch& ubatch) {
  const Bundle none;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const absl::Status status =
        stages_[i]->Run(ubatch, i == 0 ? none : bundles_[i - 1], &bundles_[i]);
    CHECK_MSG(status.ok(), status.ToString());
  }
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

MtpRunner::MtpRunner(const TestModel& model, const ModelRunnerOptions& options) {
  const int pages = (options.context + kPagePositions - 1) / kPagePositions;
  for (int i = pages; i-- > 0;) pages_.push_back(i);
  block_ = OrDie(MtpBlock::Create(model.config, *model.tensors, *model.weights,
                                  {.kv_cache = options.kv_cache,
                                   .num_pages = pages,
                                   .num_slots = 1,
                                   .max_tokens = options.context,
                                   .threads = options.threads,
                                   .kernels = OrDie(SelectCpuKernels(options.isa))}));
}

std::span<const float> MtpRunner::Step(int start, std::span<const TokenId> tokens,
                                       std::span<const float> hidden) {
  UbatchSequence sequence;
  sequence.start = start;
  sequence.rows = static_cast<int32_t>(tokens.size());
  sequence.tokens = tokens;
  sequence.pages = pages_;
  sequence.logits_all = true;
  Ubatch ubatch;
  ubatch.sequences = {&sequence, 1};
  ubatch.rows = sequence.rows;
  const absl::Status status = block_->Run(ubatch, hidden);
  CHECK_MSG(status.ok(), status.ToString());
  return block_->logits();
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace packtrain
