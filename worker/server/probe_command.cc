#include "worker/server/probe_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>

#include "common/config/host_facts.h"
#include "worker/device/probe.h"

namespace packtrain {

int RunProbe(int argc, char** argv) {
  bool probe = false, no_measure = false;
  std::optional<int> gpu;
  ProbeOptions options;
  CLI::App app("packtrain-worker --probe: what this host has and how fast it is, as JSON");
  app.add_flag("--probe", probe, "do this");
  app.add_option("--probe-storage", options.storage, "file or folder whose storage is read");
  app.add_flag("--no-measure", no_measure, "only what the kernel tells");
  app.add_option("--probe-gpu", gpu, "only this GPU, measured")->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  options.measure = !no_measure;
  std::puts(HostFactsToJson(gpu ? ProbeCard(*gpu) : ProbeHost(options)).c_str());
  return 0;
}

}  // namespace packtrain
