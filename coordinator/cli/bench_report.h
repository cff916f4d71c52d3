#pragma once

// What bench has measured, as people and programs read it.

#include <optional>
#include <string>
#include <vector>

#include "common/model/step.h"
#include "coordinator/cli/bench_runs.h"
#include "coordinator/placement/floor.h"

namespace packtrain {

struct BenchLine {
  std::string test;
  BenchCase bench_case;
  bool decode = false;             // which of the case's two rates
  std::vector<double> rates = {};  // tokens per second, sorted, at least one
  std::optional<SpeedFloor> floor = std::nullopt;
  double predicted = 0;  // tokens per second by the plan; 0: it tells nothing
  std::string bound = {};
  double experts = 0;   // expected distinct ones of a layer and step
  int num_experts = 0;  // of a layer, 0: none, or not known
  StepTimes step = {};  // of decode

  double median() const { return rates[rates.size() / 2]; }
};

struct BenchWorker {
  std::string name;
  std::string place;    // device or address
  std::string carries;  // "layers 0-17"
  int threads = 0;      // 0: not known
};

struct BenchReport {
  std::string model = {};
  std::string where = {};  // the machine or the endpoint
  std::string path = {};   // of the model; empty: not known
  int context = 0;
  int ubatch = 0;  // 0: not known
  std::vector<BenchWorker> workers = {};
  std::vector<BenchLine> lines = {};
  std::vector<std::string> skipped = {};  // lines that could not be measured, with the reason
};

std::string BenchMarkdown(const BenchReport& report);
std::string BenchJson(const BenchReport& report);

}  // namespace packtrain
