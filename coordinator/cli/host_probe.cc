#include "coordinator/cli/host_probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "coordinator/fleet/worker_process.h"

extern char** environ;

namespace packtrain {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kProbeTime = std::chrono::seconds(50);
constexpr size_t kMostOutput = 1 << 20;

// Starts the program with its standard output in `*output`.
absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& arguments, int* output) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    return absl::UnavailableError(
        absl::StrFormat("%s cannot be started: %s", arguments[0], std::strerror(error)));
  }
  *output = ends[0];
  return pid;
}

// Everything up to the end of the output; DEADLINE_EXCEEDED if that is late or too much.
absl::StatusOr<std::string> ReadAll(int fd) {
  const Clock::time_point deadline = Clock::now() + kProbeTime;
  std::string text;
  char buffer[4096];
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wait = {.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = left > 0 ? poll(&wait, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0 || text.size() > kMostOutput) {
      return absl::DeadlineExceededError(
          absl::StrFormat("the probe did not end within %d s", kProbeTime.count()));
    }
    const ssize_t got = read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

absl::StatusOr<HostFacts> Probe(const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {SiblingBinary("packtrain-worker"), "--probe"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  int output = -1;
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(arguments, &output));
  const absl::StatusOr<std::string> text = ReadAll(output);
  close(output);
  if (!text.ok()) kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  RETURN_IF_ERROR(text.status());
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnavailableError(absl::StrCat(arguments[0], " --probe failed"));
  }
  return HostFactsFromJson(*text);
}

// What takes time to measure, from facts of the same machine. GPUs are known by their place on the
// bus.
void TakeRates(const HostFacts& from, HostFacts* to) {
  to->dram_read = from.dram_read;
  to->experts_read_gb_per_s = from.experts_read_gb_per_s;
  to->weight_rates = from.weight_rates;
  to->experts_layer_us = from.experts_layer_us;
  to->experts_threads = from.experts_threads;
  to->thread_round_trip_us = from.thread_round_trip_us;
  to->process_round_trip_us = from.process_round_trip_us;
  to->storage = from.storage;
  for (GpuFacts& gpu : to->gpus) {
    for (const GpuFacts& other : from.gpus) {
      if (gpu.pci != other.pci) continue;
      gpu.read_gb_per_s = other.read_gb_per_s;
      gpu.bf16_tflops = other.bf16_tflops;
      gpu.to_device_gb_per_s = other.to_device_gb_per_s;
      gpu.from_device_gb_per_s = other.from_device_gb_per_s;
      gpu.flag_round_trip_us = other.flag_round_trip_us;
      gpu.product_us = other.product_us;
      gpu.weight_rates = other.weight_rates;
    }
  }
}

}  // namespace

std::string FactsCachePath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return absl::StrCat(cache, "/packtrain/host.json");
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] != '/') return "";
  return absl::StrCat(home, "/.cache/packtrain/host.json");
}

absl::StatusOr<HostFacts> ProbeThisHost(const std::vector<std::string>& storage) {
  std::vector<std::string> options;
  for (const std::string& path : storage) {
    options.push_back("--probe-storage");
    options.push_back(path);
  }
  ASSIGN_OR_RETURN(HostFacts facts, Probe(options));
  if (!facts.gpu_note.empty()) return facts;  // the driver knows none of them
  for (GpuFacts& gpu : facts.gpus) {
    if (gpu.index < 0) continue;
    // A process each: see ProbeCard.
    ASSIGN_OR_RETURN(HostFacts one, Probe({"--probe-gpu", absl::StrCat(gpu.index)}));
    if (one.gpus.empty()) {
      facts.gpu_note = absl::StrFormat("cuda:%d cannot be measured: %s", gpu.index, one.gpu_note);
    } else {
      gpu = std::move(one.gpus.front());
    }
  }
  return facts;
}

absl::Status WriteFactsCache(const HostFacts& facts, const std::string& path) {
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  const std::string temporary = absl::StrCat(path, ".", getpid());
  {
    std::ofstream out(temporary, std::ios::binary);
    out << HostFactsToJson(facts) << "\n";
    if (!out.flush()) {
      fs::remove(temporary, error);
      return absl::UnavailableError(absl::StrCat(path, " cannot be written"));
    }
  }
  fs::rename(temporary, path, error);
  if (!error) return absl::OkStatus();
  const std::string reason = error.message();
  fs::remove(temporary, error);
  return absl::UnavailableError(absl::StrCat(path, " cannot be written: ", reason));
}

absl::StatusOr<HostFacts> FactsForPlanning(Unmeasured unmeasured) {
  const std::string path = FactsCachePath();
  std::ifstream in(path, std::ios::binary);
  if (path.empty() || !in) {
    if (unmeasured == Unmeasured::kMeasure) return ProbeThisHost({});
    return Probe({"--no-measure"});
  }
  std::stringstream text;
  text << in.rdbuf();
  const absl::StatusOr<HostFacts> cached = HostFactsFromJson(text.str());
  if (!cached.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ",
                                                   std::string(cached.status().message()),
                                                   "; run packtrain doctor to write it anew"));
  }
  ASSIGN_OR_RETURN(HostFacts facts, Probe({"--no-measure"}));
  TakeRates(*cached, &facts);
  return facts;
}

}  // namespace packtrain
