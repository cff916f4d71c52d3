#include "coordinator/cli/bench_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/model/step.h"
#include "coordinator/cli/bench_runs.h"
#include "coordinator/cli/host_probe.h"
#include "coordinator/cli/log_to_display.h"
#include "coordinator/cli/service.h"
#include "coordinator/placement/floor.h"
#include "coordinator/placement/work.h"

namespace packtrain {
namespace {

using Json = nlohmann::ordered_json;

// Prompt of the decode lines that are not at a depth: short, so that little but weights is read.
constexpr int kShortPrompt = 32;
constexpr auto kPoll = std::chrono::milliseconds(20);

struct Line {
  std::string test;
  BenchCase bench_case;
  std::vector<double> rates = {};  // tokens per second, sorted
  std::optional<SpeedFloor> floor = std::nullopt;
  double predicted = 0;  // tokens per second by the plan; 0: it tells nothing of several streams
  std::string bound = {};
  double experts = 0;   // expected distinct ones of a layer and step
  StepTimes step = {};  // of decode

  double median() const { return rates[rates.size() / 2]; }
};

std::vector<Line> PlannedLines(const BenchOptions& options) {
  std::vector<Line> lines;
  for (const int prompt : options.prompts) {
    lines.push_back({absl::StrCat("prefill ", prompt), {.prompt = prompt}});
  }
  for (const int streams : options.streams) {
    lines.push_back({absl::StrCat("decode ", options.generate),
                     {.streams = streams, .prompt = kShortPrompt, .generate = options.generate}});
  }
  for (const int depth : options.depths) {
    lines.push_back({absl::StrCat("decode ", options.generate, " at ", depth),
                     {.prompt = depth, .generate = options.generate}});
  }
  return lines;
}

// Positions in the cache when half of a decode line's tokens are there.
int DepthOf(const BenchCase& c) { return c.prompt + c.generate / 2; }

double PredictedAt(const std::vector<SpeedAt>& speeds, int tokens) {
  for (const SpeedAt& at : speeds) {
    if (at.tokens == tokens) return at.tokens_per_s;
  }
  return 0;
}

// Why a line cannot be measured; empty if it can.
std::string Obstacle(const BenchCase& c, const DeploymentPlan& plan) {
  const int positions = c.prompt + c.generate + 1;
  const int pages = c.streams * ((positions + kPagePositions - 1) / kPagePositions);
  if (positions > plan.context_length) {
    return absl::StrFormat("needs %d positions, the context has %d", positions,
                           plan.context_length);
  }
  if (c.streams > plan.num_slots) return absl::StrFormat("there are %d slots", plan.num_slots);
  if (pages > plan.num_pages) {
    return absl::StrFormat("needs %d KV pages, there are %d", pages, plan.num_pages);
  }
  return "";
}

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : options_(options), display_(stderr, isatty(STDERR_FILENO) == 1) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(const Topology topology, MakeTopology(options_.served));
    // Before any worker takes its cores.
    ASSIGN_OR_RETURN(facts_, FactsForPlanning(Unmeasured::kMeasure));
    Placement placement;
    SpeedQuestions questions;
    questions.prompts = options_.prompts;
    for (const Line& line : PlannedLines(options_)) {
      if (line.bench_case.generate > 0) questions.depths.push_back(DepthOf(line.bench_case));
    }
    ASSIGN_OR_RETURN(services_,
                     OpenServices(topology, facts_, questions, &display_, nullptr, &placement));
    ShowPlacement(placement, &display_);
    RETURN_IF_ERROR(Choose());
    service_->Start();
    RETURN_IF_ERROR(WaitReady());
    RETURN_IF_ERROR(MeasureAll());
    std::puts(options_.json ? AsJson().c_str() : AsMarkdown().c_str());
    return absl::OkStatus();
  }

 private:
  absl::Status Choose() {
    std::vector<std::string> names;
    for (const auto& service : services_) {
      names.push_back(service->plan().name);
      if (service_ == nullptr && (options_.name.empty() || options_.name == names.back())) {
        service_ = service.get();
      }
    }
    if (service_ != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat("no model is called \"%s\"; there are: %s",
                                                      options_.name, absl::StrJoin(names, ", ")));
  }

  absl::Status WaitReady() const {
    for (;; std::this_thread::sleep_for(kPoll)) {
      const DeploymentState state = service_->deployment()->state();
      if (state == DeploymentState::kReady) return absl::OkStatus();
      if (state == DeploymentState::kFailed) {
        return absl::UnavailableError(service_->deployment()->state_message());
      }
    }
  }

  absl::Status MeasureAll() {
    BenchRuns runs(service_->deployment());
    const DeploymentPlan& plan = service_->plan();
    bool warm = false;
    for (Line& line : PlannedLines(options_)) {
      if (const std::string obstacle = Obstacle(line.bench_case, plan); !obstacle.empty()) {
        skipped_.push_back(
            absl::StrFormat("%s, %d streams: %s", line.test, line.bench_case.streams, obstacle));
        continue;
      }
      if (!std::exchange(warm, true)) {
        RETURN_IF_ERROR(runs.Measure({.prompt = line.bench_case.prompt, .generate = 8}).status());
      }
      for (int i = 0; i < options_.repeats; ++i) {
        ASSIGN_OR_RETURN(const double rate, runs.Measure(line.bench_case));
        line.rates.push_back(rate);
      }
      if (line.bench_case.generate > 0) line.step = service_->deployment()->load().decode_step;
      std::sort(line.rates.begin(), line.rates.end());
      AddJudgement(&line);
      display_.Print(absl::StrFormat("%s, %d streams: %.1f tokens/s", line.test,
                                     line.bench_case.streams, line.median()));
      lines_.push_back(std::move(line));
    }
    return absl::OkStatus();
  }

  void AddJudgement(Line* line) const {
    const DeploymentPlan& plan = service_->plan();
    const BenchCase& c = line->bench_case;
    const int experts = service_->facts().config.moe.num_experts;
    if (c.generate == 0) {
      line->experts =
          experts * TouchedShare(service_->facts().config, std::min(c.prompt, plan.max_tokens));
      line->predicted = PredictedAt(service_->speed().prefill, c.prompt);
      line->floor = FloorOfPrefill(service_->facts(), plan, facts_, c.prompt);
      line->bound = line->floor ? line->floor->bound : service_->speed().prefill_bound;
      return;
    }
    const int stages = static_cast<int>(
        std::count_if(plan.workers.begin(), plan.workers.end(),
                      [](const WorkerPlan& w) { return w.role == WorkerRole::kStage; }));
    const int groups = std::min(c.streams, stages);
    line->experts =
        experts * TouchedShare(service_->facts().config, (c.streams + groups - 1) / groups);
    line->floor = FloorOfDecode(service_->facts(), plan, facts_, c.streams, DepthOf(c));
    line->bound = line->floor ? line->floor->bound : service_->speed().decode_bound;
    if (c.streams == 1) line->predicted = PredictedAt(service_->speed().decode, DepthOf(c));
  }

  int ThreadsOf(const WorkerPlan& worker) const {
    return worker.threads > 0 ? worker.threads : facts_.cpu.cores;
  }

  std::string AsMarkdown() const {
    const DeploymentPlan& plan = service_->plan();
    std::vector<std::string> threads;
    std::string out = absl::StrFormat("%s on %s (%s, %d cores)\n\n", plan.name, facts_.cpu.model,
                                      facts_.cpu.isa, facts_.cpu.cores);
    for (const WorkerPlan& worker : plan.workers) {
      threads.push_back(absl::StrCat(ThreadsOf(worker)));
      absl::StrAppendFormat(&out, "- %s on %s\n", WorkerText(worker),
                            worker.address.empty() ? worker.device : worker.address);
    }
    absl::StrAppend(
        &out,
        "\n| test | streams | tokens/s | spread | predicted | floor | share of floor | "
        "bound by | experts touched | threads | step ms: experts + compute + hops + control | "
        "GPU operations |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | ---: |\n");
    for (const Line& line : lines_) {
      absl::StrAppendFormat(&out, "| %s | %d | %.2f | %.2f-%.2f | ", line.test,
                            line.bench_case.streams, line.median(), line.rates.front(),
                            line.rates.back());
      absl::StrAppend(&out, line.predicted > 0 ? absl::StrFormat("%.2f", line.predicted) : "-");
      if (line.floor) {
        absl::StrAppendFormat(&out, " | %.2f | %.0f %%", line.floor->tokens_per_s,
                              100 * line.median() / line.floor->tokens_per_s);
      } else {
        absl::StrAppend(&out, " | - | -");
      }
      absl::StrAppendFormat(
          &out, " | %s | %s | %s | %s | %s |\n", line.bound, ExpertsText(line),
          absl::StrJoin(threads, "+"), StepText(line.step),
          line.step.gpu_operations > 0 ? absl::StrFormat("%.0f", line.step.gpu_operations) : "-");
    }
    absl::StrAppendFormat(
        &out,
        "\nMedian of %d runs after a warm-up. Predicted: by the plan. Floor: all bytes that must "
        "be read or copied and all products of prompts, at the rates measured of the devices that "
        "do it. Step: medians of the last decode steps; experts is the time that stages waited for "
        "them, control that of the first stage without a step. Experts touched: expected of a "
        "layer and step, and what experts workers really read. GPU operations: kernels and copies "
        "of a step.\n",
        options_.repeats);
    for (const std::string& text : skipped_) absl::StrAppend(&out, "Skipped: ", text, ".\n");
    return out;
  }

  static std::string WorkerText(const WorkerPlan& worker) {
    if (worker.role == WorkerRole::kStage) {
      return absl::StrCat(worker.name, ": layers ", FormatLayers(worker.layers));
    }
    return absl::StrCat(
        worker.name, ": experts of layers ",
        absl::StrJoin(worker.expert_layers, ", ", [](std::string* out, const LayerRange& range) {
          out->append(FormatLayers(range));
        }));
  }

  static std::string StepText(const StepTimes& step) {
    if (step.interval <= 0) return "-";
    return absl::StrFormat("%.2f: %.2f + %.2f + %.2f + %.2f", step.interval / 1e3,
                           step.experts / 1e3, step.compute / 1e3, step.hops() / 1e3,
                           step.control / 1e3);
  }

  std::string ExpertsText(const Line& line) const {
    const int experts = service_->facts().config.moe.num_experts;
    if (experts == 0) return "-";
    const std::string expected = absl::StrFormat("%.1f of %d", line.experts, experts);
    if (line.step.experts_read <= 0) return expected;
    return absl::StrFormat("%s, read %.1f", expected, line.step.experts_read);
  }

  std::string AsJson() const {
    const DeploymentPlan& plan = service_->plan();
    Json json = {
        {"model", plan.name},         {"path", plan.model_path},        {"cpu", facts_.cpu.model},
        {"isa", facts_.cpu.isa},      {"context", plan.context_length}, {"ubatch", plan.max_tokens},
        {"repeats", options_.repeats}};
    json["workers"] = Json::array();
    for (const WorkerPlan& worker : plan.workers) {
      json["workers"].push_back({{"name", worker.name},
                                 {"device", worker.device},
                                 {"address", worker.address},
                                 {"carries", WorkerText(worker)},
                                 {"threads", ThreadsOf(worker)}});
    }
    json["lines"] = Json::array();
    for (const Line& line : lines_) {
      Json one = {{"test", line.test},
                  {"streams", line.bench_case.streams},
                  {"prompt", line.bench_case.prompt},
                  {"generate", line.bench_case.generate},
                  {"tokens_per_s", line.median()},
                  {"tokens_per_s_min", line.rates.front()},
                  {"tokens_per_s_max", line.rates.back()},
                  {"experts_touched", line.experts},
                  {"experts", service_->facts().config.moe.num_experts},
                  {"bound", line.bound}};
      if (line.step.experts_read > 0) one["experts_read"] = line.step.experts_read;
      if (line.step.gpu_operations > 0) one["gpu_operations"] = line.step.gpu_operations;
      if (line.predicted > 0) one["predicted_tokens_per_s"] = line.predicted;
      if (line.step.interval > 0) {
        one["step_us"] = {{"interval", line.step.interval},
                          {"experts", line.step.experts},
                          {"compute", line.step.compute},
                          {"hops", line.step.hops()},
                          {"control", line.step.control}};
      }
      if (line.floor) {
        one["floor_tokens_per_s"] = line.floor->tokens_per_s;
        one["floor_bytes"] = line.floor->bytes;
        one["share_of_floor"] = line.median() / line.floor->tokens_per_s;
      }
      json["lines"].push_back(std::move(one));
    }
    json["skipped"] = skipped_;
    return json.dump(2, ' ', false, Json::error_handler_t::replace);
  }

  const BenchOptions& options_;
  LoadDisplay display_;
  LogToDisplay log_{&display_};
  HostFacts facts_;
  std::vector<std::unique_ptr<Service>> services_;
  Service* service_ = nullptr;
  std::vector<Line> lines_;
  std::vector<std::string> skipped_;
};

}  // namespace

CLI::App* AddBench(CLI::App* app, BenchOptions* options) {
  CLI::App* bench = app->add_subcommand("bench", "measure prefill and decode of a deployment");
  AddServedModel(bench, &options->served);
  bench->add_option("--name", options->name, "model of the topology; default: the first");
  bench->add_option("--prompt", options->prompts, "prefill of so many tokens; several: 512,8192")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  bench->add_option("--generate", options->generate, "tokens that each stream decodes")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  bench->add_option("--depth", options->depths, "decode behind so many tokens; several: 2048,8192")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  bench->add_option("--streams", options->streams, "decode with so many sequences; several: 1,4")
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  bench->add_option("--repeats", options->repeats, "measurements of each line")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  bench->add_flag("--json", options->json, "as JSON");
  return bench;
}

absl::Status RunBench(const BenchOptions& options) { return Bench(options).Run(); }

}  // namespace packtrain
