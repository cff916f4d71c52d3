// The worker program's command line: what it prints and refuses before it serves. Method: the real
// program, its output and exit status.

#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/wait.h>

#include <algorithm>

#include "common/config/host_facts.h"

namespace packtrain {
namespace {

struct Outcome {
  int status = -1;
  std::string out;
};

Outcome RunProgram(const std::string& arguments) {
  Outcome outcome;
  FILE* pipe = popen((PACKTRAIN_BINARY_DIR "/bin/packtrain-worker " + arguments).c_str(), "r");
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) outcome.out.append(buffer, n);
  outcome.status = WEXITSTATUS(pclose(pipe));
  return outcome;
}

TEST(WorkerProgramTest, ProbePrintsTheFactsOfTheHostAsJson) {
  const Outcome outcome = RunProgram("--probe --no-measure");
  EXPECT_EQ(outcome.status, 0);
  const auto facts = HostFactsFromJson(outcome.out);
  ASSERT_TRUE(facts.ok()) << facts.status() << "\n" << outcome.out;
  EXPECT_GT(facts->cpu.threads, 0);
  EXPECT_GT(facts->memory.total_bytes, 0u);
  EXPECT_TRUE(facts->dram_read.empty());
}

TEST(WorkerProgramTest, ListeningBeyondLoopbackWithoutEncryptionIsRefusedInOneLine) {
  for (const char* flag : {"--listen 0.0.0.0:0", "--listen 127.0.0.1:0 --data-listen [::]:0"}) {
    const Outcome outcome = RunProgram(std::string(flag) + " 2>&1");
    EXPECT_EQ(outcome.status, 2) << flag;
    EXPECT_NE(outcome.out.find("allow plain connections (--insecure"), std::string::npos)
        << outcome.out;
    EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1) << outcome.out;
  }
}

}  // namespace
}  // namespace packtrain
