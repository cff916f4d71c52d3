#include <string_view>

#include "common/base/bus_error.h"
#include "worker/server/cpu_loader.h"
#include "worker/server/cuda_loader.h"
#include "worker/server/probe_command.h"
#include "worker/server/server.h"

namespace {

absl::StatusOr<packtrain::LoadedModel> LoadModel(const packtrain::LoadRequest& request,
                                                 packtrain::ExpertsClient* experts,
                                                 const packtrain::LoadProgress& progress) {
  return request.device == "cpu" ? packtrain::LoadCpuModel(request, experts, progress)
                                 : packtrain::LoadCudaModel(request, experts, progress);
}

}  // namespace

int main(int argc, char** argv) {
  packtrain::ExitOnBusError();
  if (argc > 1 && std::string_view(argv[1]) == "--probe") return packtrain::RunProbe(argc, argv);
  return packtrain::RunWorker(argc, argv, LoadModel, packtrain::CudaLinks);
}
