#include "tests/support/fake_stage.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "common/base/status_macros.h"

namespace packtrain {
namespace {

constexpr int kHiddenDim = 4;

// 24 bits, so that it survives a trip as f32.
uint32_t Mix(uint32_t a, uint32_t b) {
  uint32_t h = (a * 2654435761U) ^ (b + 0x9e3779b9U + (a << 6) + (a >> 2));
  h ^= h >> 15;
  h *= 2246822519U;
  h ^= h >> 13;
  return h & 0xffffff;
}

uint32_t ExpertValue(int layer, uint32_t value) {
  return Mix(value, 7000U + static_cast<uint32_t>(layer));
}

TokenId HeadToken(uint32_t value) { return static_cast<TokenId>(Mix(value, 99) % kFakeVocab); }

int Option(const std::string& path, const std::string& name, int otherwise) {
  const size_t at = path.find(name + "=");
  return at == std::string::npos ? otherwise : std::atoi(path.c_str() + at + name.size() + 1);
}

class FakeStage : public Stage {
 public:
  FakeStage(const StageSpec& spec, ExpertsClient* experts, int sleep_us, int expert_layer)
      : spec_(spec), experts_(experts), sleep_us_(sleep_us), expert_layer_(expert_layer) {
    cache_.resize(static_cast<size_t>(spec.last_layer - spec.first_layer),
                  std::vector<uint32_t>(static_cast<size_t>(spec.num_pages) * kPagePositions));
  }

  absl::Status Run(const Ubatch& ubatch, const Bundle& in, Bundle* out) override {
    if (sleep_us_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(sleep_us_));
    for (auto& layer : cache_) {
      for (const PageCopy& copy : ubatch.page_copies) {
        std::copy_n(layer.begin() + copy.from * kPagePositions, kPagePositions,
                    layer.begin() + copy.to * kPagePositions);
      }
    }
    const BundleTensor* hidden = in.Find("hidden");
    if (!spec_.embeds && (hidden == nullptr || hidden->rows != static_cast<uint32_t>(ubatch.rows) ||
                          hidden->cols != kHiddenDim)) {
      return absl::InvalidArgumentError("fake stage: bundle of another shape");
    }
    BundleTensor* result = nullptr;
    if (!spec_.has_head) {
      result = out->Shape(0, "hidden", ElementType::kF32, static_cast<uint32_t>(ubatch.rows),
                          kHiddenDim);
      out->tensors.resize(1);
    }
    logits_.clear();
    size_t row = 0;
    for (const UbatchSequence& s : ubatch.sequences) {
      for (int i = 0; i < s.rows; ++i, ++row) {
        const int position = s.start + i;
        uint32_t value = spec_.embeds ? static_cast<uint32_t>(s.tokens[static_cast<size_t>(i)])
                                      : static_cast<uint32_t>(hidden->f32()[row * kHiddenDim]);
        for (int layer = spec_.first_layer; layer < spec_.last_layer; ++layer) {
          RETURN_IF_ERROR(RunLayer(layer, s, position, &value));
        }
        if (result != nullptr) {
          std::fill_n(result->f32() + row * kHiddenDim, kHiddenDim, static_cast<float>(value));
        } else if (s.logits_all || (s.logits_last && i + 1 == s.rows)) {
          const size_t at = logits_.size();
          logits_.resize(at + kFakeVocab, 0.0F);
          logits_[at + static_cast<size_t>(HeadToken(value))] = 1.0F;
        }
      }
    }
    return absl::OkStatus();
  }
  std::span<const float> logits() const override { return logits_; }
  StageMemory memory() const override { return {}; }

 private:
  uint32_t& At(int layer, const UbatchSequence& s, int position) {
    const auto page = static_cast<size_t>(s.pages[static_cast<size_t>(position / kPagePositions)]);
    return cache_[static_cast<size_t>(layer - spec_.first_layer)]
                 [page * kPagePositions + static_cast<size_t>(position % kPagePositions)];
  }

  absl::Status RunLayer(int layer, const UbatchSequence& s, int position, uint32_t* value) {
    At(layer, s, position) = *value;
    uint32_t sum = static_cast<uint32_t>(layer);
    for (int p = 0; p <= position; ++p) sum = Mix(sum, At(layer, s, p));
    *value = sum;
    if (layer < expert_layer_) return absl::OkStatus();
    const float x[kHiddenDim] = {static_cast<float>(*value)};
    const int32_t id = 0;
    const float weight = 1;
    float y[kHiddenDim] = {};
    RETURN_IF_ERROR(experts_->Post({.layer = layer,
                                    .tokens = 1,
                                    .hidden_dim = kHiddenDim,
                                    .top_k = 1,
                                    .x = x,
                                    .ids = &id,
                                    .weights = &weight}));
    RETURN_IF_ERROR(experts_->Await(y));
    *value = static_cast<uint32_t>(y[0]);
    return absl::OkStatus();
  }

  const StageSpec spec_;
  ExpertsClient* const experts_;
  const int sleep_us_;
  const int expert_layer_;
  std::vector<std::vector<uint32_t>> cache_;
  std::vector<float> logits_;
};

class FakeExperts : public ExpertsBackend {
 public:
  absl::Status Compute(const ExpertsRequest& request, float* y) override {
    for (int t = 0; t < request.tokens; ++t) {
      const float x = request.x[t * request.hidden_dim];
      std::fill_n(y + t * request.hidden_dim, request.hidden_dim,
                  static_cast<float>(ExpertValue(request.layer, static_cast<uint32_t>(x))));
    }
    return absl::OkStatus();
  }
};

SequenceOutput SampleFake(std::span<const float> logits, const SequenceStart&,
                          std::span<const TokenId>, int) {
  SequenceOutput output;
  output.token =
      static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  return output;
}

}  // namespace

TokenId FakeNextToken(const std::vector<TokenId>& ids, int layers, int expert_layer) {
  std::vector<uint32_t> values(ids.begin(), ids.end());
  for (int layer = 0; layer < layers; ++layer) {
    uint32_t sum = static_cast<uint32_t>(layer);
    std::vector<uint32_t> next;
    for (const uint32_t v : values) {
      sum = Mix(sum, v);
      next.push_back(layer < expert_layer ? sum : ExpertValue(layer, sum));
    }
    values = std::move(next);
  }
  return HeadToken(values.back());
}

absl::StatusOr<LoadedModel> LoadFakeModel(const LoadRequest& request, ExpertsClient* experts,
                                          const LoadProgress& progress) {
  const int load_ms = Option(request.model_path, "load_ms", 1);
  for (int ms = 0; ms < load_ms; ++ms) {
    if (!progress(static_cast<uint64_t>(ms), static_cast<uint64_t>(load_ms))) {
      return absl::CancelledError("loading was cancelled");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  progress(static_cast<uint64_t>(load_ms), static_cast<uint64_t>(load_ms));
  LoadedModel model;
  model.hidden_dim = kHiddenDim;
  model.vocab_size = kFakeVocab;
  model.expert_top_k = 1;
  if (request.experts) {
    model.experts = std::make_unique<FakeExperts>();
    return model;
  }
  model.stage = std::make_unique<FakeStage>(*request.stage, experts,
                                            Option(request.model_path, "sleep_us", 0),
                                            Option(request.model_path, "expert_layer", 1 << 20));
  model.sampling.sample = SampleFake;
  model.sampling.score = [](std::span<const float>, TokenId token, int) {
    return std::vector<TokenLogprob>{{token, 0.0F}};
  };
  return model;
}

}  // namespace packtrain
