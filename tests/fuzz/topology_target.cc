#include "common/config/topology.h"
#include "tests/fuzz/fuzz_targets.h"

namespace packtrain {

std::string FuzzTopology(std::span<const std::byte> bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto topology = ParseTopology(text, "fuzz.yaml");
  if (!topology.ok()) {
    const std::string message(topology.status().message());
    return message.starts_with("fuzz.yaml") ? "" : "an error without its place: " + message;
  }
  for (const ModelEntry& model : topology->models) {
    if (model.name.empty() || model.path.empty()) return "a model without name or path";
    int stages = 0;
    for (const WorkerEntry& worker : model.workers) {
      stages += worker.role == WorkerRole::kStage ? 1 : 0;
      if (worker.host.empty() || worker.device.empty()) return "a worker without device";
      if (worker.layers && worker.layers->first >= worker.layers->last) return "empty layers";
    }
    // Without any workers the planner places everything.
    if (stages == 0 && !model.workers.empty()) return "a model without stages";
    for (int num_layers : {1, 30, 100}) (void)CheckLayers(*topology, model, num_layers);
  }
  return "";
}

}  // namespace packtrain
