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
#include "coordinator/cli/bench_endpoint.h"
#include "coordinator/cli/bench_report.h"
#include "coordinator/cli/bench_runs.h"
#include "coordinator/cli/host_probe.h"
#include "coordinator/cli/log_to_display.h"
#include "coordinator/cli/service.h"
#include "coordinator/placement/floor.h"
#include "coordinator/placement/work.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Prompt of the decode lines that are not at a depth: short, so that little but weights is read.
constexpr int kShortPrompt = 32;
constexpr auto kPoll = std::chrono::milliseconds(20);
// A case that has taken so long is not repeated: such runs differ by little.
constexpr auto kCaseTime = std::chrono::seconds(10);

// Two lines of the same case are measured by the same runs.
std::vector<BenchLine> PlannedLines(const BenchOptions& options) {
  std::vector<BenchLine> lines;
  for (const int prompt : options.prompts) {
    const bool decodes =
        std::find(options.depths.begin(), options.depths.end(), prompt) != options.depths.end();
    lines.push_back({absl::StrCat("prefill ", prompt),
                     {.prompt = prompt, .generate = decodes ? options.generate : 0}});
  }
  for (const int streams : options.streams) {
    lines.push_back({absl::StrCat("decode ", options.generate),
                     {.streams = streams, .prompt = kShortPrompt, .generate = options.generate},
                     /*decode=*/true});
  }
  for (const int depth : options.depths) {
    lines.push_back({absl::StrCat("decode ", options.generate, " at ", depth),
                     {.prompt = depth, .generate = options.generate},
                     /*decode=*/true});
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

// Runs the lines' cases, at most so often each. `obstacle` says why one cannot be measured, empty
// if it can.
absl::Status MeasureLines(const BenchOptions& options, BenchTarget* target,
                          const std::function<std::string(const BenchCase&)>& obstacle,
                          LoadDisplay* display, BenchReport* report) {
  BenchRuns runs(target);
  std::vector<BenchLine> lines = PlannedLines(options);
  bool warm = false;
  for (BenchLine& line : lines) {
    const BenchCase& c = line.bench_case;
    if (!line.rates.empty()) continue;  // with another line of its case
    if (const std::string reason = obstacle(c); !reason.empty()) {
      report->skipped.push_back(
          absl::StrFormat("%s, %d streams: %s", line.test, c.streams, reason));
      continue;
    }
    if (!std::exchange(warm, true)) {
      RETURN_IF_ERROR(runs.Measure({.prompt = c.prompt, .generate = 8}).status());
    }
    const Clock::time_point end = Clock::now() + kCaseTime;
    for (int i = 0; i < options.repeats && (i == 0 || Clock::now() < end); ++i) {
      ASSIGN_OR_RETURN(const BenchRates rates, runs.Measure(c));
      for (BenchLine& same : lines) {
        if (same.bench_case == c) same.rates.push_back(same.decode ? rates.decode : rates.prefill);
      }
    }
    for (BenchLine& same : lines) {
      if (!(same.bench_case == c)) continue;
      if (same.decode) same.step = target->decode_step();
      std::sort(same.rates.begin(), same.rates.end());
      display->Print(
          absl::StrFormat("%s, %d streams: %.1f tokens/s", same.test, c.streams, same.median()));
    }
  }
  std::erase_if(lines, [](const BenchLine& line) { return line.rates.empty(); });
  report->lines = std::move(lines);
  return absl::OkStatus();
}

void Print(const BenchOptions& options, const BenchReport& report) {
  std::puts(options.json ? BenchJson(report).c_str() : BenchMarkdown(report).c_str());
}

std::string WorkerText(const WorkerPlan& worker) {
  if (worker.role == WorkerRole::kStage) return "layers " + FormatLayers(worker.layers);
  return absl::StrCat(
      "experts of layers ",
      absl::StrJoin(worker.expert_layers, ", ", [](std::string* out, const LayerRange& range) {
        out->append(FormatLayers(range));
      }));
}

// A deployment that is started for it.
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
    for (const BenchLine& line : PlannedLines(options_)) {
      if (line.decode) questions.depths.push_back(DepthOf(line.bench_case));
    }
    ASSIGN_OR_RETURN(services_,
                     OpenServices(topology, facts_, questions, &display_, nullptr, &placement));
    ShowPlacement(placement, &display_);
    RETURN_IF_ERROR(Choose());
    service_->Start();
    RETURN_IF_ERROR(WaitReady());
    DeploymentTarget target(service_->deployment());
    BenchReport report = Subject();
    RETURN_IF_ERROR(MeasureLines(
        options_, &target, [this](const BenchCase& c) { return Obstacle(c); }, &display_, &report));
    for (BenchLine& line : report.lines) Judge(&line);
    Print(options_, report);
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

  std::string Obstacle(const BenchCase& c) const {
    const DeploymentPlan& plan = service_->plan();
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

  BenchReport Subject() const {
    const DeploymentPlan& plan = service_->plan();
    BenchReport report = {.model = plan.name,
                          .where = absl::StrFormat("%s (%s, %d cores)", facts_.cpu.model,
                                                   facts_.cpu.isa, facts_.cpu.cores),
                          .path = plan.model_path,
                          .context = plan.context_length,
                          .ubatch = plan.max_tokens};
    for (const WorkerPlan& worker : plan.workers) {
      report.workers.push_back(
          {worker.name, worker.address.empty() ? worker.device : worker.address, WorkerText(worker),
           worker.threads > 0 ? worker.threads : facts_.cpu.cores});
    }
    return report;
  }

  void Judge(BenchLine* line) const {
    const DeploymentPlan& plan = service_->plan();
    const ModelFacts& model = service_->facts();
    const BenchCase& c = line->bench_case;
    line->num_experts = model.config.moe.num_experts;
    int rows = std::min(c.prompt, plan.max_tokens);
    if (line->decode) {
      const int stages = static_cast<int>(
          std::count_if(plan.workers.begin(), plan.workers.end(),
                        [](const WorkerPlan& w) { return w.role == WorkerRole::kStage; }));
      const int groups = std::min(c.streams, stages);
      rows = (c.streams + groups - 1) / groups;
      line->floor = FloorOfDecode(model, plan, facts_, c.streams, DepthOf(c));
      line->bound = line->floor ? line->floor->bound : service_->speed().decode_bound;
      if (c.streams == 1) line->predicted = PredictedAt(service_->speed().decode, DepthOf(c));
    } else {
      line->predicted = PredictedAt(service_->speed().prefill, c.prompt);
      line->floor = FloorOfPrefill(model, plan, facts_, c.prompt);
      line->bound = line->floor ? line->floor->bound : service_->speed().prefill_bound;
    }
    line->experts = line->num_experts * TouchedShare(model.config, rows);
  }

  const BenchOptions& options_;
  LoadDisplay display_;
  LogToDisplay log_{&display_};
  HostFacts facts_;
  std::vector<std::unique_ptr<Service>> services_;
  Service* service_ = nullptr;
};

// An endpoint that runs: what it predicts is in its plan, for some depths and prompts.
absl::Status BenchEndpoint(const BenchOptions& options) {
  LoadDisplay display(stderr, isatty(STDERR_FILENO) == 1);
  EndpointTarget target(options.url, options.name, options.api_key);
  RETURN_IF_ERROR(target.Open());
  BenchReport report = {.model = target.model(), .where = options.url, .context = target.context()};
  const nlohmann::json plan = target.plan();
  if (plan.is_object()) {
    report.path = plan.value("path", "");
    report.ubatch = plan.value("ubatch", 0);
  }
  RETURN_IF_ERROR(MeasureLines(
      options, &target,
      [&](const BenchCase& c) {
        const int positions = c.prompt + c.generate + 1;
        return report.context > 0 && positions > report.context
                   ? absl::StrFormat("needs %d positions, the context has %d", positions,
                                     report.context)
                   : "";
      },
      &display, &report));
  for (BenchLine& line : report.lines) {
    if (!plan.is_object() || !plan.contains("predicted")) break;
    const nlohmann::json& predicted = plan["predicted"];
    line.bound = predicted.value(line.decode ? "decode_bound" : "prefill_bound", "");
    const char* const what = line.decode ? "depth" : "prompt";
    for (const nlohmann::json& at :
         predicted.value(line.decode ? "decode" : "prefill", nlohmann::json::array())) {
      if (line.bench_case.streams == 1 && at.value(what, 0) == line.bench_case.prompt) {
        line.predicted = at.value("tokens_per_s", 0.0);
      }
    }
  }
  Print(options, report);
  return absl::OkStatus();
}

}  // namespace

CLI::App* AddBench(CLI::App* app, BenchOptions* options) {
  CLI::App* bench = app->add_subcommand("bench", "measure prefill and decode of a deployment");
  const CLI::Option* model = AddServedModel(bench, &options->served);
  const CLI::Option* topology = bench->get_option("topology");
  const CLI::Option* url =
      bench->add_option("--url", options->url, "a running endpoint, HOST:PORT, instead of a file")
          ->excludes("topology")
          ->excludes("--model");
  bench->callback([topology, model, url] {
    if (topology->count() + model->count() + url->count() == 0) {
      throw CLI::RequiredError("a topology file, --model FILE or --url HOST:PORT");
    }
  });
  bench->add_option("--api-key", options->api_key, "the endpoint's")->needs("--url");
  bench->add_option("--name", options->name,
                    "model of the topology or endpoint; default: the first");
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
  bench
      ->add_option("--repeats", options->repeats,
                   "measurements of each line, at most: slow ones are repeated less")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  bench->add_flag("--json", options->json, "as JSON");
  return bench;
}

absl::Status RunBench(const BenchOptions& options) {
  return options.url.empty() ? Bench(options).Run() : BenchEndpoint(options);
}

}  // namespace packtrain
