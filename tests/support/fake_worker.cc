// packtrain-worker with fake stages and experts.

#include "tests/support/fake_stage.h"
#include "worker/server/server.h"

int main(int argc, char** argv) {
  return packtrain::RunWorker(argc, argv, packtrain::LoadFakeModel,
                              [](const std::string&) { return packtrain::DeviceLinks{}; });
}
