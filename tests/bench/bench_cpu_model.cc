// A whole model on the CPU in one process: prefill and decode tokens/s of a stage that carries all
// layers, where their time goes, and the floor that reading the weights sets.
//
//   bench_cpu_model --model=FILE.gguf [--threads=N] [--isa=avx512] [--prefill=64,512] [--decode=32]
//                   [--depth=N] [--kv=f16] [--reps=5] [--json=FILE]
//
// Checked first: the logits are finite, and a prompt computed again in other chunks continues with
// the same tokens. --depth: positions in the cache before decode begins. Rates are of the median
// repetition, by the wall clock and by processor time over the threads: on a shared machine the
// second leaves out when others ran.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/model_runner.h"

namespace packtrain {
namespace {

struct Options {
  std::string model;
  std::string isa;
  std::string json;
  std::vector<int> prefill = {64, 512};
  int threads = 2;
  int decode = 32;
  int depth = 64;
  int reps = 5;
  KvCacheType kv = KvCacheType::kF16;
};

KvCacheType KvTypeByName(const std::string& name) {
  if (name == "f32") return KvCacheType::kF32;
  if (name == "q8_0") return KvCacheType::kQ8_0;
  if (name == "q4_1") return KvCacheType::kQ4_1;
  return KvCacheType::kF16;
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = std::min(argument.find('='), argument.size());
    const std::string name = argument.substr(0, equals);
    const std::string value = equals < argument.size() ? argument.substr(equals + 1) : "";
    if (name == "--model") {
      options->model = value;
    } else if (name == "--isa") {
      options->isa = value;
    } else if (name == "--json") {
      options->json = value;
    } else if (name == "--prefill") {
      options->prefill.clear();
      std::stringstream stream(value);
      for (std::string item; std::getline(stream, item, ',');) {
        options->prefill.push_back(std::stoi(item));
      }
    } else if (name == "--threads") {
      options->threads = std::stoi(value);
    } else if (name == "--decode") {
      options->decode = std::stoi(value);
    } else if (name == "--depth") {
      options->depth = std::stoi(value);
    } else if (name == "--reps") {
      options->reps = std::max(1, std::stoi(value));
    } else if (name == "--kv") {
      options->kv = KvTypeByName(value);
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argument.c_str());
      return false;
    }
  }
  return !options->model.empty();
}

double Seconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Timing {
  double wall = 0;
  double cpu = 0;  // of all threads
};

// The bytes of a tensor that one token reads: all, but one row of the embedding and the picked
// experts only.
double BytesPerToken(const GgufTensor& tensor, const ModelConfig& config, bool tied) {
  const auto bytes = static_cast<double>(RowBytes(tensor.type, tensor.elements()));
  if (tensor.name.find("_exps.") != std::string::npos) {
    return bytes * config.moe.top_k / config.moe.num_experts;
  }
  return tensor.name == "token_embd.weight" && !tied ? 0 : bytes;
}

// Bytes of the trunk's layers; the indexer's queries count although short contexts do without.
double WeightBytesPerToken(const TestModel& model) {
  const bool tied = model.tensors->Find(TensorRole::kOutput, -1) == nullptr;
  double bytes = 0;
  for (const GgufTensor& tensor : model.file->tensors()) {
    int layer = 0;
    const bool of_layer = std::sscanf(tensor.name.c_str(), "blk.%d.", &layer) == 1;
    if (of_layer && layer >= model.config.num_layers) continue;  // MTP
    bytes += BytesPerToken(tensor, model.config, tied);
  }
  return bytes;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        model_(options.model),
        vocab_(static_cast<size_t>(model_.config.vocab_size)),
        kernels_(SelectCpuKernels(options.isa).value()),
        runner_(model_, RunnerOptions()) {
    std::mt19937 random(1);
    for (int i = 0; i < Context(); ++i) {
      prompt_.push_back(static_cast<TokenId>(random() % vocab_));
    }
  }

  bool Run() {
    std::printf("%s: %d layers, %s, %d threads, cache %s\n", options_.model.c_str(),
                model_.config.num_layers, std::string(kernels_->name).c_str(), options_.threads,
                options_.kv == KvCacheType::kF32 ? "f32" : "rounded");
    if (!Check()) return false;
    for (int tokens : options_.prefill) Prefill(tokens);
    Decode();
    return true;
  }

 private:
  int Context() const {
    int context = options_.depth + options_.decode;
    for (int tokens : options_.prefill) context = std::max(context, tokens);
    return std::max(context, 128);
  }

  ModelRunnerOptions RunnerOptions() const {
    return {.threads = options_.threads,
            .kv_cache = options_.kv,
            .context = Context(),
            .isa = std::string(kernels_->name)};
  }

  // Rows start .. of the prompt; only the last one's logits, as a server asks.
  std::span<const float> Step(int start, std::span<const TokenId> tokens) {
    UbatchSequence sequence;
    sequence.start = start;
    sequence.rows = static_cast<int32_t>(tokens.size());
    sequence.tokens = tokens;
    sequence.pages = runner_.pages(0);
    sequence.reset = start == 0;
    sequence.logits_last = true;
    Ubatch ubatch;
    ubatch.sequences = {&sequence, 1};
    ubatch.rows = sequence.rows;
    runner_.Run(ubatch);
    return runner_.logits();
  }

  std::vector<TokenId> Continue(int prompt, int chunk, int count) {
    std::vector<TokenId> ids;
    std::span<const float> logits;
    for (int start = 0; start < prompt; start += chunk) {
      logits = Step(
          start, std::span(prompt_).subspan(static_cast<size_t>(start),
                                            static_cast<size_t>(std::min(chunk, prompt - start))));
    }
    for (int i = 0; i < count; ++i) {
      if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
        return {};
      }
      const TokenId id = ArgMax(logits);
      ids.push_back(id);
      logits = Step(prompt + i, {&id, 1});
    }
    return ids;
  }

  bool Check() {
    const std::vector<TokenId> once = Continue(40, 40, 8);
    const bool ok = !once.empty() && once == Continue(40, 7, 8);
    std::printf("check: %s\n", ok ? "finite, the same tokens in other chunks"
                                  : "FAILED: not finite, or chunks change the tokens");
    return ok;
  }

  template <typename Work>
  void Time(const std::string& what, int tokens, Work work) {
    std::vector<Timing> timings;
    OpTimes& times = runner_.op_times();
    for (int rep = 0; rep < options_.reps; ++rep) {
      if (rep == 0) times.Reset(CLOCK_PROCESS_CPUTIME_ID);
      const Timing start = {Seconds(CLOCK_MONOTONIC), Seconds(CLOCK_PROCESS_CPUTIME_ID)};
      work(rep);
      timings.push_back(
          {Seconds(CLOCK_MONOTONIC) - start.wall, Seconds(CLOCK_PROCESS_CPUTIME_ID) - start.cpu});
    }
    const auto median = [&](auto field) {
      std::vector<double> values;
      for (const Timing& timing : timings) values.push_back(timing.*field);
      std::sort(values.begin(), values.end());
      return values[values.size() / 2] / tokens;
    };
    const double wall = median(&Timing::wall);
    const double cpu = median(&Timing::cpu) / options_.threads;
    std::printf("%-12s %9.2f tokens/s   %9.2f by processor time\n", what.c_str(), 1 / wall,
                1 / cpu);
    double total = 0;
    for (size_t k = 1; k < OpTimes::kNumKinds; ++k) total += times.seconds(static_cast<OpKind>(k));
    for (size_t k = 1; k < OpTimes::kNumKinds; ++k) {
      const double seconds = times.seconds(static_cast<OpKind>(k));
      if (seconds <= 0) continue;
      std::printf("    %-10s %5.1f %%  %9.1f us a token of processor time\n",
                  std::string(OpTimes::kNames[k]).c_str(), 100 * seconds / total,
                  1e6 * seconds / options_.reps / tokens);
    }
    if (!options_.json.empty()) {
      std::ofstream(options_.json, std::ios::app)
          << "{\"model\": \"" << options_.model << "\", \"isa\": \"" << kernels_->name
          << "\", \"threads\": " << options_.threads << ", \"what\": \"" << what
          << "\", \"tokens_per_s\": " << 1 / wall << ", \"tokens_per_cpu_s\": " << 1 / cpu << "}\n";
    }
  }

  void Prefill(int tokens) {
    const auto prompt = std::span(prompt_).first(static_cast<size_t>(tokens));
    Time("prefill " + std::to_string(tokens), tokens, [&](int) { Step(0, prompt); });
  }

  void Decode() {
    constexpr int kChunk = 256;
    for (int start = 0; start < options_.depth; start += kChunk) {
      Step(start, std::span(prompt_).subspan(
                      static_cast<size_t>(start),
                      static_cast<size_t>(std::min(kChunk, options_.depth - start))));
    }
    Time("decode", options_.decode, [&](int) {
      for (int i = 0; i < options_.decode; ++i) {
        const int position = options_.depth + i;
        Step(position, std::span(prompt_).subspan(static_cast<size_t>(position), 1));
      }
    });
    const double bytes = WeightBytesPerToken(model_);
    std::printf("floor        %9.2f tokens/s: %.1f MB a token at %.1f GB/s\n", Bandwidth() / bytes,
                bytes / 1e6, Bandwidth() / 1e9);
  }

  // Bytes/s at which the threads read the file's mapping, or 4 times the last-level cache of it.
  double Bandwidth() {
    if (bandwidth_ > 0) return bandwidth_;
    std::span<const std::byte> largest;
    for (const GgufTensor& tensor : model_.file->tensors()) {
      const auto data = model_.file->Data(tensor);
      if (data.size() > largest.size()) largest = data;
    }
    largest = largest.first(std::min<size_t>(largest.size(), size_t{512} << 20));
    ThreadPool pool(options_.threads);
    const size_t pieces = 64 * static_cast<size_t>(options_.threads);
    const size_t piece = largest.size() / pieces / 64 * 64;
    std::vector<uint64_t> sums(static_cast<size_t>(options_.threads) * 8);
    std::vector<double> seconds;
    for (int rep = 0; rep < 5; ++rep) {
      const double start = Seconds(CLOCK_MONOTONIC);
      pool.ParallelFor(static_cast<int>(pieces), [&](int task, int thread) {
        const std::byte* p = largest.data() + static_cast<size_t>(task) * piece;
        uint64_t sum = 0;
        for (size_t i = 0; i < piece; i += 64) {
          uint64_t word;
          std::memcpy(&word, p + i, sizeof word);
          sum += word;
        }
        sums[static_cast<size_t>(thread) * 8] += sum;
      });
      seconds.push_back(Seconds(CLOCK_MONOTONIC) - start);
    }
    if (sums[0] == 1) std::puts("");  // keeps the sums
    bandwidth_ =
        static_cast<double>(piece * pieces) / *std::min_element(seconds.begin(), seconds.end());
    return bandwidth_;
  }

  const Options options_;
  TestModel model_;
  size_t vocab_;
  const CpuKernels* kernels_;
  ModelRunner runner_;
  std::vector<TokenId> prompt_;
  double bandwidth_ = 0;
};

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  packtrain::Options options;
  if (!packtrain::ParseOptions(argc, argv, &options)) {
    std::fprintf(stderr, "usage: bench_cpu_model --model=FILE.gguf (options: see the source)\n");
    return 2;
  }
  return packtrain::Bench(options).Run() ? 0 : 1;
}
