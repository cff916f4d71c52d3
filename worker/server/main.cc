#include "worker/server/cpu_loader.h"
#include "worker/server/server.h"

int main(int argc, char** argv) {
  return packtrain::RunWorker(argc, argv, packtrain::LoadCpuModel);
}
