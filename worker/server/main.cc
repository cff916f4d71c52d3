#include <string_view>

#include "worker/server/cpu_loader.h"
#include "worker/server/probe_command.h"
#include "worker/server/server.h"

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "--probe") return packtrain::RunProbe(argc, argv);
  return packtrain::RunWorker(argc, argv, packtrain::LoadCpuModel);
}
