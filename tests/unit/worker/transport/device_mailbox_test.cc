// Aim: a mailbox whose client is a device is served although the device can wake nobody, and no
// reply but that of the very request counts. Method: this thread does what the kernels of
// worker/kernels/cuda/mailbox.cu do, with the words and arrays of DeviceMailbox alone.

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/transport/shm/mailbox.h"

namespace packtrain {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr MailboxShape kShape{.max_tokens = 4, .hidden_dim = 32, .top_k = 2};
constexpr milliseconds kLong(20'000);

// Row t is x[t] + 100 * the first id of t. Can be held up, and fails for one layer.
class Backend : public ExpertsBackend {
 public:
  static constexpr int kUnknownLayer = 99;
  absl::Status Compute(const ExpertsRequest& r, float* y) override {
    std::unique_lock lock(mutex_);
    ++calls_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    if (r.layer == kUnknownLayer) return absl::InvalidArgumentError("no layer 99 here");
    for (int t = 0; t < r.tokens; ++t) {
      for (int i = 0; i < r.hidden_dim; ++i) {
        const int at = t * r.hidden_dim + i;
        y[at] = r.x[at] + 100.0F * static_cast<float>(r.ids[t * r.top_k]);
      }
    }
    return absl::OkStatus();
  }
  void AwaitCall() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return calls_ > 0; });
  }
  void Hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int calls_ = 0;
};

enum class Outcome { kReply, kCode, kClosed, kTimedOut };

class Device {
 public:
  explicit Device(std::shared_ptr<DeviceMailbox> mailbox) : mailbox_(std::move(mailbox)) {}

  void Post(uint64_t step, int layer, const std::vector<float>& x,
            const std::vector<int32_t>& ids) {
    const std::vector<float> weights(ids.size(), 1.0F);
    std::copy(x.begin(), x.end(), At<float>(layout().x));
    std::copy(ids.begin(), ids.end(), At<int32_t>(layout().ids));
    std::copy(weights.begin(), weights.end(), At<float>(layout().weights));
    auto* call = At<uint32_t>(layout().call);
    call[0] = static_cast<uint32_t>(layer);
    call[1] = static_cast<uint32_t>(ids.size()) / 2;
    call[2] = 2;
    word_ = mailbox_->Word(layer) + DeviceMailbox::StepBits(step);
    At<std::atomic<uint64_t>>(layout().request)->store(word_, std::memory_order_release);
  }
  Outcome Await(milliseconds timeout) {
    const auto deadline = steady_clock::now() + timeout;
    while (true) {
      if (At<std::atomic<uint64_t>>(layout().reply)->load(std::memory_order_acquire) == word_)
        return code() != 0 ? Outcome::kCode : Outcome::kReply;
      if (At<std::atomic<uint32_t>>(layout().closed)->load() != 0) return Outcome::kClosed;
      if (steady_clock::now() > deadline) return Outcome::kTimedOut;
      std::this_thread::yield();
    }
  }
  uint32_t code() { return *At<uint32_t>(layout().code); }
  float y(size_t i) { return At<float>(layout().y)[i]; }
  uint64_t word() const { return word_; }

 private:
  const DeviceMailbox::Layout& layout() const { return mailbox_->layout(); }
  template <typename T>
  T* At(size_t offset) {
    return reinterpret_cast<T*>(layout().memory + offset);
  }

  const std::shared_ptr<DeviceMailbox> mailbox_;
  uint64_t word_ = 0;
};

class DeviceMailboxTest : public testing::TestWithParam<microseconds> {
 protected:
  void SetUp() override { Connect(1); }
  void TearDown() override { Disconnect(); }

  void Connect(uint64_t epoch) {
    const std::string name =
        absl::StrCat("packtrain-test/", getpid(), "/device-mailbox/", epoch, "/", ++num_names_);
    auto server = MailboxServer::Listen(name, kShape, GetParam());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    thread_ = std::thread([this] { result_ = server_->Serve(&backend_); });
    auto client = MailboxClient::Connect(
        name, kShape, {.epoch = epoch, .timeout = milliseconds(50)}, steady_clock::now() + kLong);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    mailbox_ = client_->device_mailbox(0);
    device_ = std::make_unique<Device>(mailbox_);
  }
  void Disconnect() {
    backend_.Hold(false);
    server_->Close();
    if (thread_.joinable()) thread_.join();
    server_ = nullptr;
  }
  void BeginStep(uint64_t step) {
    client_->BeginStep(step);
    mailbox_->BeginStep();
  }

  static inline int num_names_ = 0;
  Backend backend_;
  std::unique_ptr<MailboxServer> server_;
  std::thread thread_;
  absl::Status result_;
  std::unique_ptr<MailboxClient> client_;
  std::shared_ptr<DeviceMailbox> mailbox_;
  std::unique_ptr<Device> device_;
};

INSTANTIATE_TEST_SUITE_P(Spinning, DeviceMailboxTest,
                         testing::Values(microseconds(0), microseconds(50)));

TEST_P(DeviceMailboxTest, RequestsOfManyStepsAreAnsweredWithoutAWakeUp) {
  std::vector<float> x(64);
  for (uint64_t step = 1; step <= 40; ++step) {
    BeginStep(step);
    for (int layer = 3; layer < 13; ++layer) {
      if (step % 8 == 0 && layer == 7) std::this_thread::sleep_for(milliseconds(3));
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i + step);
      device_->Post(step, layer, x, {layer, 1, 2, layer});
      ASSERT_EQ(device_->Await(kLong), Outcome::kReply) << step << " " << layer;
      ASSERT_EQ(device_->y(5), x[5] + 100.0F * static_cast<float>(layer));
      ASSERT_EQ(device_->y(37), x[37] + 200.0F);
    }
    mailbox_->EndStep(microseconds(step));
    EXPECT_EQ(client_->waited(), microseconds(step));
    EXPECT_EQ(client_->used().requests, 10u);
    EXPECT_EQ(client_->used().experts, 30u);
  }
}

TEST_P(DeviceMailboxTest, TheReplyOfARequestThatWasGivenUpMatchesNothing) {
  BeginStep(1);
  backend_.Hold(true);
  const std::vector<float> x(32, 1.0F);
  device_->Post(1, 3, x, {1, 0});
  backend_.AwaitCall();
  EXPECT_EQ(device_->Await(milliseconds(20)), Outcome::kTimedOut);
  EXPECT_TRUE(absl::IsDeadlineExceeded(mailbox_->TimedOut(3)));
  mailbox_->EndStep({});
  BeginStep(2);
  device_->Post(2, 3, x, {7, 0});
  backend_.Hold(false);
  ASSERT_EQ(device_->Await(kLong), Outcome::kReply);
  EXPECT_EQ(device_->y(0), 701.0F);
}

TEST_P(DeviceMailboxTest, NoTwoRequestsHaveOneWord) {
  std::set<uint64_t> words;
  for (const uint64_t epoch : {1ULL, 2ULL, 3ULL}) {
    if (epoch > 1) {
      Disconnect();
      Connect(epoch);
    }
    for (const uint64_t step : {0ULL, 1ULL, 2ULL, 0xffffffULL}) {
      for (int layer : {0, 1, 77}) {
        words.insert(mailbox_->Word(layer) + DeviceMailbox::StepBits(step));
      }
    }
  }
  EXPECT_EQ(words.size(), 3u * 4 * 3);
  EXPECT_EQ(words.count(0), 0u);
}

TEST_P(DeviceMailboxTest, ADeviceAndItsHostUseTheSameWords) {
  client_->BeginStep(5);
  const float x[32] = {}, weights[2] = {};
  const int32_t ids[2] = {3, 4};
  float y[32];
  ASSERT_TRUE(client_
                  ->Post({.layer = 6,
                          .tokens = 1,
                          .hidden_dim = 32,
                          .top_k = 2,
                          .x = x,
                          .ids = ids,
                          .weights = weights})
                  .ok());
  ASSERT_TRUE(client_->Await(y).ok());
  const auto* request = reinterpret_cast<std::atomic<uint64_t>*>(mailbox_->layout().memory +
                                                                 mailbox_->layout().request);
  EXPECT_EQ(request->load(), mailbox_->Word(6) + DeviceMailbox::StepBits(5));
}

TEST_P(DeviceMailboxTest, AnErrorOfTheServerComesAsItsCode) {
  BeginStep(1);
  device_->Post(1, Backend::kUnknownLayer, std::vector<float>(32), {1, 0});
  ASSERT_EQ(device_->Await(kLong), Outcome::kCode);
  const absl::Status status = mailbox_->Refused(device_->code());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "no layer 99 here");
}

TEST_P(DeviceMailboxTest, ClosingTheClientEndsTheWaitAndTheServer) {
  BeginStep(1);
  backend_.Hold(true);
  device_->Post(1, 3, std::vector<float>(32), {1, 0});
  std::thread closer([this] { client_->Close(); });
  EXPECT_EQ(device_->Await(kLong), Outcome::kClosed);
  EXPECT_TRUE(absl::IsUnavailable(mailbox_->Gone()));
  closer.join();
  backend_.Hold(false);
  thread_.join();
  EXPECT_EQ(result_.code(), absl::StatusCode::kUnavailable);
}

TEST_P(DeviceMailboxTest, TheMemoryOutlivesTheClientWhileADeviceHoldsIt) {
  BeginStep(1);
  client_ = nullptr;
  device_->Post(1, 4, std::vector<float>(32), {1, 0});
  EXPECT_EQ(device_->Await(kLong), Outcome::kClosed);
}

TEST(DeviceMailboxServerTest, AServerThatWasKilledIsNoticedWhenAskedFor) {
  const std::string name = absl::StrCat("packtrain-test/", getpid(), "/killed");
  auto listener = RegionListener::Listen(name);
  ASSERT_TRUE(listener.ok());
  auto client = MailboxClient::Connect(name, kShape, {.epoch = 1, .timeout = kLong},
                                       steady_clock::now() + kLong);
  ASSERT_TRUE(client.ok()) << client.status();
  auto region = (*listener)->Accept(1 << 20, steady_clock::now() + kLong);
  ASSERT_TRUE(region.ok()) << region.status();
  const std::shared_ptr<DeviceMailbox> mailbox = (*client)->device_mailbox(0);
  Device device(mailbox);
  device.Post(1, 3, std::vector<float>(32), {1, 0});
  mailbox->CheckServer();
  EXPECT_EQ(device.Await(milliseconds(5)), Outcome::kTimedOut);
  *region = nullptr;
  mailbox->CheckServer();
  EXPECT_EQ(device.Await(kLong), Outcome::kClosed);
}

}  // namespace
}  // namespace packtrain
