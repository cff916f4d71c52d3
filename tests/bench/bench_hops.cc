// Time of one hop: the experts mailbox between two spinning processes, and a bundle one way over
// each transport. The first result of each is checked before it is timed.

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "tests/conformance/transport_endpoint.h"
#include "worker/transport/shm/mailbox.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

void Print(const std::string& what, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  std::printf("%-44s median %8.1f us   p99 %8.1f us\n", what.c_str(), us[us.size() / 2],
              us[us.size() * 99 / 100]);
}

constexpr int kHiddenDim = 6144;

class Negate : public ExpertsBackend {
 public:
  absl::Status Compute(const ExpertsRequest& r, float* y) override {
    for (int i = 0; i < r.hidden_dim; ++i) y[i] = -r.x[i];
    return absl::OkStatus();
  }
};

void BindTo(size_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Spinning ends each have a core to themselves, as far as others leave them one.
void BenchMailbox(std::chrono::nanoseconds spin, const char* what) {
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  const std::string name = absl::StrCat("packtrain-bench/", getpid(), "/", spin.count());
  const MailboxShape shape{.max_tokens = 1, .hidden_dim = kHiddenDim, .top_k = 8};
  const pid_t child = fork();
  if (spin.count() > 0) BindTo(child == 0 ? 1 : 0);
  if (child == 0) {
    Negate backend;
    auto server = MailboxServer::Listen(name, shape, spin);
    if (server.ok()) server.value()->Serve(&backend).IgnoreError();
    _exit(0);
  }
  auto client = MailboxClient::Connect(
      name, shape, {.epoch = 1, .spin = spin, .timeout = std::chrono::seconds(5)},
      Clock::now() + std::chrono::seconds(5));
  CHECK(client.ok());
  std::vector<float> x(kHiddenDim), y(kHiddenDim), weights(8, 1.0F);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const std::vector<int32_t> ids(8, 0);
  std::vector<double> us;
  for (int i = 0; i < 20000; ++i) {
    if (i % 60 == 0) (*client)->BeginStep(static_cast<uint64_t>(i));
    const Clock::time_point begin = Clock::now();
    CHECK((*client)
              ->Post({.layer = i % 60,
                      .tokens = 1,
                      .hidden_dim = kHiddenDim,
                      .top_k = 8,
                      .x = x.data(),
                      .ids = ids.data(),
                      .weights = weights.data()})
              .ok());
    CHECK((*client)->Await(y.data()).ok());
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    CHECK(i != 0 || y[77] == -77.0F);
  }
  Print(what, us);
  sched_setaffinity(0, sizeof all, &all);
  client->reset();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

void BenchTransport(const std::string& name, uint32_t bytes, int trips) {
  const std::string base = absl::StrCat("unix:/tmp/packtrain-bench-", getpid());
  const uint64_t epoch = static_cast<uint64_t>(getpid());
  TransportEndpoint a(name, "a", base + "a", epoch), b(name, "b", base + "b", epoch);
  const size_t max = 64 << 20;
  auto to_b = b.transport().OpenReceive({"a", "b", "x"}, a.info(), max);
  auto to_a = a.transport().OpenReceive({"b", "a", "x"}, b.info(), max);
  auto from_a = a.transport().OpenSend({"a", "b", "x"}, b.info(), max);
  auto from_b = b.transport().OpenSend({"b", "a", "x"}, a.info(), max);
  CHECK(to_b.ok() && to_a.ok() && from_a.ok() && from_b.ok());
  const auto deadline = Clock::now() + std::chrono::minutes(1);
  std::thread echo([&] {
    Bundle bundle;
    for (int i = 0; i < trips; ++i) {
      CHECK((*to_b)->Receive(&bundle, deadline).ok());
      CHECK((*from_b)->Send(bundle, deadline).ok());
    }
  });
  Bundle bundle, back;
  bundle.epoch = epoch;
  std::fill_n(bundle.Shape(0, "hidden", ElementType::kU8, 1, bytes)->data.begin(), bytes,
              std::byte{42});
  std::vector<double> us;
  for (int i = 0; i < trips; ++i) {
    const Clock::time_point begin = Clock::now();
    CHECK((*from_a)->Send(bundle, deadline).ok());
    CHECK((*to_a)->Receive(&back, deadline).ok());
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / 2);
    CHECK(i != 0 || back.tensors[0].data == bundle.tensors[0].data);
  }
  echo.join();
  Print(absl::StrCat(name, " hop one way, ", bytes, " bytes"), us);
  for (const char* end : {"a", "b"}) unlink((base.substr(5) + end).c_str());
}

}  // namespace
}  // namespace packtrain

int main() {
  using namespace std::chrono_literals;
  packtrain::BenchMailbox(50us, "experts exchange, 24 KB each way, spinning");
  packtrain::BenchMailbox(0us, "experts exchange, 24 KB each way, sleeping");
  for (const char* name : {"shm", "grpc"}) {
    packtrain::BenchTransport(name, 24 << 10, 3000);
    packtrain::BenchTransport(name, 12 << 20, 30);
  }
  return 0;
}
