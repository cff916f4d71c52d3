// Runs every registered case (or those whose name contains an argument) and prints a table.

#include "tests/gpu/harness.h"
#include "worker/kernels/cuda/kernels.h"

using packtrain::gputest::Cases;
using packtrain::gputest::Current;

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  CUDA_OK(packtrain::cuda::PrepareDevice());
  int failed = 0, run = 0;
  std::printf("%-66s %10s %9s %9s\n", "case", "checks", "worst/tol", "result");
  for (const auto& test : Cases()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || test.name.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    Current() = {};
    test.run();
    CUDA_OK(cudaDeviceSynchronize());
    const auto& outcome = Current();
    bool ok = outcome.failures == 0 && outcome.checks > 0;
    ++run;
    failed += !ok;
    std::printf("%-66s %10ld %9.3f %9s\n", test.name.c_str(), outcome.checks, outcome.worst,
                ok ? "ok" : ("FAILED " + std::to_string(outcome.failures)).c_str());
  }
  std::printf("%d cases, %d failed\n", run, failed);
  return failed == 0 && run > 0 ? 0 : 1;
}
