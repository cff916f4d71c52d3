// The picked experts of a layer as an experts worker computes them: random picks over several
// layers whose weights exceed every cache, GB/s of the picked experts' weights by the wall clock,
// and the share of what bounds each half (gate and up, down): the read bandwidth with the same
// threads or the type's bound by instructions with an expert's tokens, whichever is less.
//
//   bench_experts [--mixes=iq2_m,...] [--threads=1,2] [--tokens=1,2,4] [--layers=8]
//                 [--experts=256] [--shape=6144x2048] [--passes=9] [--isa=avx512] [--pin=1]
//
// --shape: hidden x expert dimension; top 8 of each token. Several tokens have picks of their own,
// except in the lines marked "same". A pass is all layers once. A round measures the bounds
// and makes a pass of every line, since a shared machine's speed changes in seconds; figures, and
// those of one round over others of the same, are medians over rounds. "box us": the same passes
// asked for through the shared-memory mailbox of an experts worker, by a client that spins, the
// worker's thread and pool on the other side.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "tests/bench/cpu_bench.h"
#include "worker/kernels/cpu/kernels.h"
#include "worker/ops/experts.h"
#include "worker/transport/shm/mailbox.h"

namespace packtrain {
namespace {

constexpr size_t kTopK = 8;

struct Options {
  std::vector<std::string> mixes = {"iq1_m", "iq2_xxs", "iq2_m", "iq3", "q2_k_xl", "q4"};
  std::vector<std::string> threads = {"1"};
  std::vector<std::string> tokens = {"1"};
  size_t layers = 8, experts = 256, hidden = 6144, dim = 2048, passes = 9;
  std::string isa;
  bool pin = true;
};

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = std::min(argument.find('='), argument.size());
    const std::string name = argument.substr(0, equals);
    const std::string value = equals < argument.size() ? argument.substr(equals + 1) : "";
    if (name == "--mixes") {
      options->mixes = Split(value);
    } else if (name == "--threads") {
      options->threads = Split(value);
    } else if (name == "--tokens") {
      options->tokens = Split(value);
    } else if (name == "--layers") {
      options->layers = std::stoul(value);
    } else if (name == "--experts") {
      options->experts = std::stoul(value);
    } else if (name == "--shape") {
      options->hidden = std::stoul(value);
      options->dim = std::stoul(value.substr(value.find('x') + 1));
    } else if (name == "--passes") {
      options->passes = std::stoul(value);
    } else if (name == "--isa") {
      options->isa = value;
    } else if (name == "--pin") {
      options->pin = value != "0";
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argument.c_str());
      return false;
    }
  }
  return true;
}

// Types of (gate and up, down), as in the synthetic models of the tests.
struct Mix {
  const TypeTraits* inner;
  const TypeTraits* down;
};

const Mix* MixByName(const std::string& name) {
  static const std::map<std::string, Mix> mixes = {
      {"iq1_m", {TypeByName("IQ1_M"), TypeByName("IQ2_XXS")}},
      {"iq2_xxs", {TypeByName("IQ2_XXS"), TypeByName("IQ2_XXS")}},
      {"iq2_m", {TypeByName("IQ2_XS"), TypeByName("IQ3_XXS")}},
      {"iq3", {TypeByName("IQ3_XXS"), TypeByName("IQ3_S")}},
      {"q2_k_xl", {TypeByName("Q2_K"), TypeByName("Q3_K")}},
      {"q4", {TypeByName("Q4_K"), TypeByName("Q6_K")}},
      {"q8", {TypeByName("Q8_0"), TypeByName("Q8_0")}},
      {"mxfp4", {TypeByName("MXFP4"), TypeByName("MXFP4")}},
  };
  const auto found = mixes.find(name);
  return found == mixes.end() ? nullptr : &found->second;
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return Median(values);
}

// A step's input: picks of `tokens` tokens, distinct within each token.
struct Step {
  std::vector<int32_t> ids;
  size_t distinct = 0;
};

Step RandomPicks(size_t tokens, size_t experts, bool same, std::mt19937* random) {
  Step step;
  std::vector<int32_t> all(experts);
  std::iota(all.begin(), all.end(), 0);
  for (size_t t = 0; t < tokens; ++t) {
    if (t == 0 || !same) std::shuffle(all.begin(), all.end(), *random);
    step.ids.insert(step.ids.end(), all.begin(), all.begin() + kTopK);
  }
  step.distinct = std::set<int32_t>(step.ids.begin(), step.ids.end()).size();
  return step;
}

// An experts worker's mailbox, both ends of it.
class Mailbox {
 public:
  Mailbox(ExpertsBackend* experts, const MailboxShape& shape) {
    const std::string name = "bench-experts-" + std::to_string(getpid());
    constexpr std::chrono::seconds kLong(30);
    constexpr std::chrono::microseconds kSpin(50);
    auto server = MailboxServer::Listen(name, shape, kSpin);
    CHECK(server.ok());
    server_ = *std::move(server);
    thread_ = std::thread([this, experts] { server_->Serve(experts).IgnoreError(); });
    auto client = MailboxClient::Connect(name, shape, {.epoch = 1, .spin = kSpin, .timeout = kLong},
                                         std::chrono::steady_clock::now() + kLong);
    CHECK(client.ok());
    client_ = *std::move(client);
  }
  ~Mailbox() {
    server_->Close();
    thread_.join();
  }

  absl::Status Compute(const ExpertsRequest& request, float* y) {
    if (request.layer == 0) client_->BeginStep(++step_);
    const absl::Status posted = client_->Post(request);
    return posted.ok() ? client_->Await(y) : posted;
  }

 private:
  std::unique_ptr<MailboxServer> server_;
  std::thread thread_;
  std::unique_ptr<MailboxClient> client_;
  uint64_t step_ = 0;
};

class Bench {
 public:
  Bench(const Options& options, const CpuKernels& kernels) : options_(options), kernels_(kernels) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    x_.resize(kMaxTokens * options_.hidden);
    for (float& x : x_) x = normal(random);
    y_.resize(x_.size());
    pick_weights_.assign(kMaxTokens * kTopK, 0.125F);
  }

  void Run() {
    size_t most = 0;
    for (const std::string& name : options_.mixes)
      most = std::max(most, LayerBytes(*MixByName(name)));
    weights_ = Allocate(most * options_.layers);
    std::printf("%s, %zu layers of %zu experts %zux%zu, %s\n", std::string(kernels_.name).c_str(),
                options_.layers, options_.experts, options_.hidden, options_.dim,
                options_.pin ? "threads on CPUs of their own" : "threads free");
    std::printf("%-8s %3s %-5s %8s %6s %6s %6s %6s %6s %8s\n", "mix", "thr", "tok", "us/layer",
                "GB/s", "share", "read", "inner", "down", "box us");
    for (const std::string& name : options_.mixes) {
      const Mix& mix = *MixByName(name);
      FillLayers(mix);
      for (const std::string& threads : options_.threads) Measure(name, mix, std::stoi(threads));
    }
  }

 private:
  static constexpr size_t kMaxTokens = 8;

  size_t inner_bytes(const Mix& mix) const {
    return options_.experts * options_.dim * RowBytes(mix.inner->type, options_.hidden);
  }
  size_t down_bytes(const Mix& mix) const {
    return options_.experts * options_.hidden * RowBytes(mix.down->type, options_.dim);
  }
  size_t LayerBytes(const Mix& mix) const { return 2 * inner_bytes(mix) + down_bytes(mix); }
  uint8_t* data() { return static_cast<uint8_t*>(weights_.get()); }

  void FillLayers(const Mix& mix) {
    for (size_t layer = 0; layer < options_.layers; ++layer) {
      uint8_t* at = data() + layer * LayerBytes(mix);
      FillBlocks(*mix.inner, at, 2 * inner_bytes(mix));
      FillBlocks(*mix.down, at + 2 * inner_bytes(mix), down_bytes(mix));
    }
  }

  std::vector<ExpertWeights> Layers(const Mix& mix) {
    std::vector<ExpertWeights> layers;
    for (size_t layer = 0; layer < options_.layers; ++layer) {
      const auto* at = reinterpret_cast<const std::byte*>(data() + layer * LayerBytes(mix));
      const size_t rows = options_.experts * options_.dim;
      ExpertWeights weights;
      weights.gate = {mix.inner->type, rows, options_.hidden, at};
      weights.up = {mix.inner->type, rows, options_.hidden, at + inner_bytes(mix)};
      weights.down = {mix.down->type, options_.experts * options_.hidden, options_.dim,
                      at + 2 * inner_bytes(mix)};
      weights.expert_dim = weights.row_stride = options_.dim;
      weights.num_experts = options_.experts;
      layers.push_back(weights);
    }
    return layers;
  }

  using Compute = std::function<absl::Status(const ExpertsRequest&, float*)>;

  // Picks of a pass, a step for each layer.
  std::vector<Step> Picks(size_t tokens, bool same, std::mt19937* random) const {
    std::vector<Step> steps;
    for (size_t layer = 0; layer < options_.layers; ++layer) {
      steps.push_back(RandomPicks(tokens, options_.experts, same, random));
    }
    return steps;
  }

  // Seconds a layer of one pass.
  double Time(const Compute& compute, size_t tokens, const std::vector<Step>& steps) {
    const double start = Now();
    for (size_t layer = 0; layer < steps.size(); ++layer) {
      const ExpertsRequest request = {.layer = static_cast<int>(layer),
                                      .tokens = static_cast<int>(tokens),
                                      .hidden_dim = static_cast<int>(options_.hidden),
                                      .top_k = kTopK,
                                      .x = x_.data(),
                                      .ids = steps[layer].ids.data(),
                                      .weights = pick_weights_.data()};
      CHECK(compute(request, y_.data()).ok());
    }
    return (Now() - start) / static_cast<double>(steps.size());
  }

  // What limits a pass, bytes/s: memory, and instructions in each half.
  struct Bounds {
    double read, inner, down;
  };
  Bounds MeasureBounds(const Mix& mix, size_t tokens, int threads) {
    const size_t sample = std::min<size_t>(size_t{1} << 30, options_.layers * LayerBytes(mix));
    const auto cached = [&](const TypeTraits& traits, const uint8_t* w, size_t n) {
      return CachedRate(*kernels_.weight(traits.type), w, RowBytes(traits.type, n), size_t{1} << 16,
                        n, tokens, threads, 1);
    };
    return {ReadBandwidth(data(), sample, threads, 1), cached(*mix.inner, data(), options_.hidden),
            cached(*mix.down, data() + 2 * inner_bytes(mix), options_.dim)};
  }

  // Steps of so many tokens; what was seen of them, a value for each round.
  struct Line {
    size_t tokens = 0;
    bool same = false;
    std::vector<double> reads = {}, inners = {}, downs = {};
    std::vector<double> seconds = {}, boxed = {}, share = {}, of_one = {}, distinct = {};
  };

  void Measure(const std::string& name, const Mix& mix, int threads) {
    const double inner = 2.0 * static_cast<double>(inner_bytes(mix) / options_.experts);
    const auto down = static_cast<double>(down_bytes(mix) / options_.experts);
    ThreadPoolOptions pool_options{.num_threads = threads};
    if (options_.pin) pool_options.cpus = CpuOrder();
    ThreadPool pool(pool_options);
    LocalExperts experts({.kernels = &kernels_, .pool = &pool}, 0, Layers(mix));
    Mailbox mailbox(&experts, {.max_tokens = static_cast<int>(kMaxTokens),
                               .hidden_dim = static_cast<int>(options_.hidden),
                               .top_k = kTopK});
    std::vector<Line> lines;
    for (const std::string& option : options_.tokens) {
      const size_t tokens = std::stoul(option);
      lines.push_back({.tokens = tokens, .same = false});
      if (tokens > 1) lines.push_back({.tokens = tokens, .same = true});
    }
    std::mt19937 random(7);
    for (size_t round = 0; round <= options_.passes; ++round) {
      const bool kept = round > 0;
      double one = 0;
      for (Line& line : lines) {
        const Bounds bounds = MeasureBounds(mix, line.same ? line.tokens : 1, threads);
        const double bound =
            inner / std::min(bounds.read, bounds.inner) + down / std::min(bounds.read, bounds.down);
        const std::vector<Step> steps = Picks(line.tokens, line.same, &random);
        // The pool's threads have the others; a caller that the kernel lets wake up on one of these
        // holds every layer up until it is moved.
        std::optional<Pinned> pinned;
        if (options_.pin) pinned.emplace(CpuOrder()[0]);
        const double seconds = Time(
            [&](const ExpertsRequest& request, float* y) { return experts.Compute(request, y); },
            line.tokens, steps);
        pinned.reset();
        const double boxed = Time(
            [&](const ExpertsRequest& request, float* y) { return mailbox.Compute(request, y); },
            line.tokens, Picks(line.tokens, line.same, &random));
        if (line.tokens == 1) one = seconds;
        if (!kept) continue;
        double distinct = 0;
        for (const Step& step : steps) distinct += static_cast<double>(step.distinct);
        distinct /= static_cast<double>(steps.size());
        line.reads.push_back(bounds.read);
        line.inners.push_back(bounds.inner);
        line.downs.push_back(bounds.down);
        line.seconds.push_back(seconds);
        line.boxed.push_back(boxed);
        line.distinct.push_back(distinct);
        line.share.push_back(distinct * bound / seconds);
        if (one > 0) line.of_one.push_back(seconds / one);
      }
    }
    for (const Line& line : lines) {
      const double seconds = MedianOf(line.seconds), distinct = MedianOf(line.distinct);
      std::printf("%-8s %3d %-5s %8.1f %6.1f %5.0f%% %6.1f %6.1f %6.1f %8.1f", name.c_str(),
                  threads, (std::to_string(line.tokens) + (line.same ? "same" : "")).c_str(),
                  seconds * 1e6, distinct * (inner + down) / seconds / 1e9,
                  100 * MedianOf(line.share), MedianOf(line.reads) / 1e9,
                  MedianOf(line.inners) / 1e9, MedianOf(line.downs) / 1e9,
                  MedianOf(line.boxed) * 1e6);
      if (line.tokens > 1 && !line.of_one.empty()) {
        std::printf("   %.2f x one token's time, %.2f x its experts", MedianOf(line.of_one),
                    distinct / kTopK);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }

  const Options options_;
  const CpuKernels& kernels_;
  Buffer weights_;
  std::vector<float> x_, y_, pick_weights_;
};

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  packtrain::Options options;
  if (!packtrain::ParseOptions(argc, argv, &options)) return 1;
  for (const std::string& mix : options.mixes) {
    if (packtrain::MixByName(mix) != nullptr) continue;
    std::fprintf(stderr, "unknown mix %s\n", mix.c_str());
    return 1;
  }
  const auto kernels = packtrain::SelectCpuKernels(options.isa);
  if (!kernels.ok()) {
    std::fprintf(stderr, "%s\n", kernels.status().ToString().c_str());
    return 1;
  }
  packtrain::Bench(options, **kernels).Run();
  return 0;
}
