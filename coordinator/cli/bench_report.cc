#include "coordinator/cli/bench_report.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace packtrain {
namespace {

using Json = nlohmann::ordered_json;

std::string StepText(const StepTimes& step) {
  if (step.interval <= 0) return "-";
  return absl::StrFormat("%.2f: %.2f + %.2f + %.2f + %.2f", step.interval / 1e3, step.experts / 1e3,
                         step.compute / 1e3, step.hops() / 1e3, step.control / 1e3);
}

std::string ExpertsText(const BenchLine& line) {
  std::string text =
      line.num_experts > 0 ? absl::StrFormat("%.1f of %d", line.experts, line.num_experts) : "";
  if (line.step.experts_read > 0) {
    absl::StrAppendFormat(&text, "%sread %.1f", text.empty() ? "" : ", ", line.step.experts_read);
  }
  return text.empty() ? "-" : text;
}

std::string RateText(double rate) { return rate > 0 ? absl::StrFormat("%.2f", rate) : "-"; }

Json LineJson(const BenchLine& line) {
  Json json = {{"test", line.test},
               {"streams", line.bench_case.streams},
               {"prompt", line.bench_case.prompt},
               {"generate", line.bench_case.generate},
               {"runs", line.rates.size()},
               {"tokens_per_s", line.median()},
               {"tokens_per_s_min", line.rates.front()},
               {"tokens_per_s_max", line.rates.back()},
               {"bound", line.bound}};
  if (line.num_experts > 0) {
    json["experts_touched"] = line.experts;
    json["experts"] = line.num_experts;
  }
  if (line.step.experts_read > 0) json["experts_read"] = line.step.experts_read;
  if (line.step.gpu_operations > 0) json["gpu_operations"] = line.step.gpu_operations;
  if (line.predicted > 0) json["predicted_tokens_per_s"] = line.predicted;
  if (line.step.interval > 0) {
    json["step_us"] = {{"interval", line.step.interval},
                       {"experts", line.step.experts},
                       {"compute", line.step.compute},
                       {"hops", line.step.hops()},
                       {"control", line.step.control}};
  }
  if (line.floor) {
    json["floor_tokens_per_s"] = line.floor->tokens_per_s;
    json["floor_bytes"] = line.floor->bytes;
    json["share_of_floor"] = line.median() / line.floor->tokens_per_s;
  }
  return json;
}

}  // namespace

std::string BenchMarkdown(const BenchReport& report) {
  std::string out = absl::StrFormat("%s on %s\n\n", report.model, report.where);
  std::vector<std::string> threads;
  for (const BenchWorker& worker : report.workers) {
    if (worker.threads > 0) threads.push_back(absl::StrCat(worker.threads));
    absl::StrAppendFormat(&out, "- %s: %s on %s\n", worker.name, worker.carries, worker.place);
  }
  absl::StrAppend(
      &out,
      "\n| test | streams | tokens/s | spread | runs | predicted | floor | share of floor | "
      "bound by | experts touched | threads | step ms: experts + compute + hops + control | "
      "GPU operations |\n"
      "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | ---: "
      "|\n");
  for (const BenchLine& line : report.lines) {
    absl::StrAppendFormat(&out, "| %s | %d | %.2f | %.2f-%.2f | %d | %s | ", line.test,
                          line.bench_case.streams, line.median(), line.rates.front(),
                          line.rates.back(), line.rates.size(), RateText(line.predicted));
    if (line.floor) {
      absl::StrAppendFormat(&out, "%.2f | %.0f %%", line.floor->tokens_per_s,
                            100 * line.median() / line.floor->tokens_per_s);
    } else {
      absl::StrAppend(&out, "- | -");
    }
    absl::StrAppendFormat(
        &out, " | %s | %s | %s | %s | %s |\n", line.bound.empty() ? "-" : line.bound,
        ExpertsText(line), threads.empty() ? "-" : absl::StrJoin(threads, "+"), StepText(line.step),
        line.step.gpu_operations > 0 ? absl::StrFormat("%.0f", line.step.gpu_operations) : "-");
  }
  absl::StrAppend(
      &out,
      "\nMedians of the runs after a warm-up. Predicted: by the plan. Floor: all bytes that must "
      "be "
      "read or copied and all products of prompts, at the rates measured of the devices that do "
      "it. "
      "Step: medians of the last decode steps; experts is the time that stages waited for them, "
      "control that of the first stage without a step. Experts touched: expected of a layer and "
      "step, and what experts workers really read. GPU operations: kernels and copies of a "
      "step.\n");
  for (const std::string& text : report.skipped) absl::StrAppend(&out, "Skipped: ", text, ".\n");
  return out;
}

std::string BenchJson(const BenchReport& report) {
  Json json = {{"model", report.model}, {"where", report.where}, {"context", report.context}};
  if (!report.path.empty()) json["path"] = report.path;
  if (report.ubatch > 0) json["ubatch"] = report.ubatch;
  json["workers"] = Json::array();
  for (const BenchWorker& worker : report.workers) {
    json["workers"].push_back({{"name", worker.name},
                               {"place", worker.place},
                               {"carries", worker.carries},
                               {"threads", worker.threads}});
  }
  json["lines"] = Json::array();
  for (const BenchLine& line : report.lines) json["lines"].push_back(LineJson(line));
  json["skipped"] = report.skipped;
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace packtrain
