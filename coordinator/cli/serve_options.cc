#include "coordinator/cli/serve_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

// "models/Qwen3-30B-Q4_K_M-00001-of-00002.gguf" -> "Qwen3-30B-Q4_K_M".
std::string NameOf(const std::string& path) {
  std::string name = std::filesystem::path(path).filename().string();
  if (absl::EndsWith(name, ".gguf")) name.resize(name.size() - 5);
  const size_t piece = name.rfind("-00001-of-");
  if (piece != std::string::npos && piece > 0) name.resize(piece);
  return name;
}

absl::StatusOr<ModelEntry> MakeModel(const ServeOptions& options, const std::string& path) {
  ModelEntry model;
  model.name = NameOf(path);
  model.path = path;
  model.context = options.context;
  ASSIGN_OR_RETURN(model.kv_cache, ParseKvCacheType(options.kv_cache));
  model.thinking = options.thinking == "on";
  model.slots = options.slots;
  model.ubatch = options.ubatch;
  model.threads = options.threads;
  return model;
}

WorkerEntry CpuWorker(WorkerRole role) {
  WorkerEntry worker;
  worker.device = "cpu";
  worker.role = role;
  return worker;
}

}  // namespace

CLI::Option* AddServedModel(CLI::App* command, ServeOptions* options) {
  CLI::Option* topology =
      command->add_option("topology", options->topology_path, "YAML file")->type_name("FILE");
  CLI::Option* model =
      command->add_option("--model", options->model_path, "GGUF file (first piece)");
  model->excludes(topology);
  for (CLI::Option* option :
       {command->add_option("--sidecar", options->sidecar_path, "second model, served beside it"),
        command->add_option("--context", options->context, "positions of one sequence")
            ->check(CLI::Range(64, 16 << 20)),
        command->add_option("--kv-cache", options->kv_cache, "type of the KV cache")
            ->check(CLI::IsMember({"f32", "f16", "q8_0", "q4_1"}))
            ->capture_default_str(),
        command
            ->add_option("--threads", options->threads, "of each worker; default: physical cores")
            ->check(CLI::Range(1, 1024)),
        command
            ->add_option("--stages", options->stages,
                         "CPU workers in the primary's pipeline; default: planned")
            ->check(CLI::Range(1, 256)),
        command
            ->add_flag("--experts-worker", options->experts_worker,
                       "the primary's routed experts in a worker of their own")
            ->disable_flag_override(),
        command
            ->add_option("--slots", options->slots,
                         "sequences that run at once; default: 8, of a sidecar also 4 if its card "
                         "then holds all of it")
            ->check(CLI::Range(1, 256)),
        command->add_option("--ubatch", options->ubatch, "rows of one step, chunks of prompts")
            ->check(CLI::Range(16, 8192))}) {
    option->needs(model);
  }
  command->callback([topology, model] {
    if (topology->count() + model->count() == 0) {
      throw CLI::RequiredError("a topology file, or --model FILE,");
    }
  });
  return model;
}

absl::StatusOr<Topology> MakeTopology(const ServeOptions& options) {
  if (!options.topology_path.empty()) return LoadTopology(options.topology_path);
  Topology topology;
  topology.source = "command line";
  topology.listen_address = options.host;
  topology.listen_port = options.port;
  ASSIGN_OR_RETURN(ModelEntry primary, MakeModel(options, options.model_path));
  const int stages = options.experts_worker ? std::max(options.stages, 1) : options.stages;
  for (int i = 0; i < stages; ++i) primary.workers.push_back(CpuWorker(WorkerRole::kStage));
  if (options.experts_worker) primary.workers.push_back(CpuWorker(WorkerRole::kExperts));
  topology.models.push_back(std::move(primary));
  if (!options.sidecar_path.empty()) {
    ASSIGN_OR_RETURN(ModelEntry sidecar, MakeModel(options, options.sidecar_path));
    sidecar.role = "sidecar";
    if (sidecar.name == topology.models[0].name) sidecar.name += "-sidecar";
    topology.models.push_back(std::move(sidecar));
  }
  RETURN_IF_ERROR(CheckTopology(&topology));
  RETURN_IF_ERROR(CheckModelFiles(topology));
  return topology;
}

}  // namespace packtrain
