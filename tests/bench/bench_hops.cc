// Time of one hop: the experts mailbox between two processes, the client a thread or like a device,
// and a bundle one way over each transport. The first result of each is checked before it is timed.

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
constexpr int kTopK = 8;

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

// A client whose server is another process. Spinning ends each have a core to themselves, as far as
// others leave them one.
class MailboxPair {
 public:
  explicit MailboxPair(std::chrono::nanoseconds spin) {
    sched_getaffinity(0, sizeof all_, &all_);
    static int number = 0;
    const std::string name = absl::StrCat("packtrain-bench/", getpid(), "/", ++number);
    const MailboxShape shape{.max_tokens = 1, .hidden_dim = kHiddenDim, .top_k = kTopK};
    child_ = fork();
    if (spin.count() > 0) BindTo(child_ == 0 ? 1 : 0);
    if (child_ == 0) {
      Negate backend;
      auto server = MailboxServer::Listen(name, shape, spin);
      if (server.ok()) server.value()->Serve(&backend).IgnoreError();
      _exit(0);
    }
    auto client = MailboxClient::Connect(
        name, shape, {.epoch = 1, .spin = spin, .timeout = std::chrono::seconds(5)},
        Clock::now() + std::chrono::seconds(5));
    CHECK(client.ok());
    client_ = *std::move(client);
  }
  ~MailboxPair() {
    sched_setaffinity(0, sizeof all_, &all_);
    client_ = nullptr;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  MailboxClient* client() { return client_.get(); }

 private:
  cpu_set_t all_;
  pid_t child_ = 0;
  std::unique_ptr<MailboxClient> client_;
};

void BenchMailbox(std::chrono::nanoseconds spin, const char* what) {
  MailboxPair pair(spin);
  std::vector<float> x(kHiddenDim), y(kHiddenDim), weights(kTopK, 1.0F);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const std::vector<int32_t> ids(kTopK, 0);
  std::vector<double> us;
  for (int i = 0; i < 20000; ++i) {
    if (i % 60 == 0) pair.client()->BeginStep(static_cast<uint64_t>(i));
    const Clock::time_point begin = Clock::now();
    CHECK(pair.client()
              ->Post({.layer = i % 60,
                      .tokens = 1,
                      .hidden_dim = kHiddenDim,
                      .top_k = kTopK,
                      .x = x.data(),
                      .ids = ids.data(),
                      .weights = weights.data()})
              .ok());
    CHECK(pair.client()->Await(y.data()).ok());
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    CHECK(i != 0 || y[77] == -77.0F);
  }
  Print(what, us);
}

// As a device would: by the words alone, with a layer's other work of 150 us before each request.
void BenchDeviceMailbox(std::chrono::nanoseconds spin, const char* what) {
  MailboxPair pair(spin);
  const std::shared_ptr<DeviceMailbox> mailbox = pair.client()->device_mailbox(0);
  const DeviceMailbox::Layout& layout = mailbox->layout();
  auto* const x = reinterpret_cast<float*>(layout.memory + layout.x);
  auto* const y = reinterpret_cast<float*>(layout.memory + layout.y);
  auto* const call = reinterpret_cast<uint32_t*>(layout.memory + layout.call);
  std::atomic_ref request(*reinterpret_cast<uint64_t*>(layout.memory + layout.request));
  std::atomic_ref reply(*reinterpret_cast<uint64_t*>(layout.memory + layout.reply));
  std::vector<double> us;
  for (uint64_t step = 1; step <= 100; ++step) {
    pair.client()->BeginStep(step);
    mailbox->BeginStep();
    for (int layer = 0; layer < 60; ++layer) {
      const Clock::time_point other = Clock::now();
      while (Clock::now() < other + std::chrono::microseconds(150)) {
      }
      const Clock::time_point begin = Clock::now();
      std::fill_n(x, kHiddenDim, static_cast<float>(layer));
      call[0] = static_cast<uint32_t>(layer);
      call[1] = 1;
      call[2] = kTopK;
      const uint64_t word = mailbox->Word(layer) + DeviceMailbox::StepBits(step);
      request.store(word, std::memory_order_release);
      while (reply.load(std::memory_order_acquire) != word) {
      }
      us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
      CHECK(y[77] == static_cast<float>(-layer));
    }
    mailbox->EndStep({});
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Print(what, us);
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
  packtrain::BenchDeviceMailbox(50us, "experts exchange of a device, spinning");
  packtrain::BenchDeviceMailbox(0us, "experts exchange of a device, sleeping");
  for (const char* name : {"shm", "grpc"}) {
    packtrain::BenchTransport(name, 24 << 10, 3000);
    packtrain::BenchTransport(name, 12 << 20, 30);
  }
  return 0;
}
