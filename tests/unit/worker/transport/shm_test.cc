// Aim: nothing that another process writes into shared memory is believed. Method: the test is that
// process; it makes the region itself and knows the layout of mailbox.cc and ring.h.

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "worker/transport/shm/futex.h"
#include "worker/transport/shm/mailbox.h"
#include "worker/transport/shm/rendezvous.h"
#include "worker/transport/shm/ring.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

Clock::time_point Soon() { return Clock::now() + std::chrono::seconds(20); }

std::string Name(const char* what) {
  static int count = 0;
  return absl::StrCat("packtrain-test/", getpid(), "/", what, "/", ++count);
}

TEST(SpinPredictorTest, NobodySpinsWithoutABudget) {
  SpinPredictor spin(microseconds(0));
  spin.Observe(microseconds(500));
  EXPECT_EQ(spin.limit().count(), 0);
}

TEST(SpinPredictorTest, SpinsUntilTheBudgetBeyondThePredictedArrival) {
  SpinPredictor spin(microseconds(50));
  EXPECT_EQ(spin.limit(), microseconds(50));
  for (int i = 0; i < 120; ++i) spin.Observe(microseconds(800));
  EXPECT_GE(spin.limit(), microseconds(840));
  EXPECT_LE(spin.limit(), microseconds(850));
  for (int i = 0; i < 20; ++i) spin.Observe(microseconds(100));
  EXPECT_GE(spin.limit(), microseconds(149));
  EXPECT_LE(spin.limit(), microseconds(151));
}

TEST(SpinPredictorTest, AWaitThatIsLongByChanceChangesLittle) {
  SpinPredictor spin(microseconds(50));
  for (int i = 0; i < 20; ++i) spin.Observe(microseconds(10));
  spin.Observe(microseconds(1900));
  EXPECT_LE(spin.limit(), microseconds(300));
  spin.Observe(microseconds(10));
  spin.Observe(microseconds(10));
  spin.Observe(microseconds(10));
  EXPECT_LE(spin.limit(), microseconds(100));
}

TEST(SpinPredictorTest, ArrivalsThatAreFarOffAreSleptFor) {
  SpinPredictor spin(microseconds(50));
  for (int i = 0; i < 20; ++i) spin.Observe(microseconds(800));
  spin.Observe(milliseconds(30));
  EXPECT_LE(spin.limit(), microseconds(50));
  EXPECT_EQ(spin.nap().count(), 0);
}

TEST(SpinPredictorTest, RegularArrivalsFarOffAreSpunForWhenTheyAreDue) {
  SpinPredictor spin(microseconds(50));
  // A pause after a spin in vain lasts up to 63 waits.
  for (int i = 0; i < 100; ++i) {
    spin.Observe(microseconds(i % 2 == 0 ? 4980 : 5020));
    if (spin.limit().count() == 0) continue;
    EXPECT_LE(spin.limit() - spin.nap(), microseconds(600)) << i;
  }
  EXPECT_GE(spin.nap(), microseconds(4700));
  EXPECT_LE(spin.nap(), microseconds(4930));
  EXPECT_GE(spin.limit(), microseconds(5030));
  EXPECT_LE(spin.limit(), microseconds(5200));
  // The next wait of another kind is not slept through.
  spin.Observe(microseconds(30));
  EXPECT_EQ(spin.nap().count(), 0);
}

TEST(SpinPredictorTest, IrregularArrivalsFarOffAreSleptFor) {
  SpinPredictor spin(microseconds(50));
  for (int i = 0; i < 200; ++i) {
    spin.Observe(milliseconds(i % 2 == 0 ? 4 : 9));
    EXPECT_EQ(spin.nap().count(), 0);
    EXPECT_LE(spin.limit(), microseconds(50));
  }
}

TEST(SpinPredictorTest, SpinsInVainBecomeRareUntilOnePays) {
  SpinPredictor spin(microseconds(50));
  int spins = 0;
  for (int i = 0; i < 640; ++i) {
    spins += spin.limit().count() > 0;
    spin.Observe(milliseconds(3 + i % 5));
  }
  EXPECT_LE(spins, 20);
  EXPECT_GE(spins, 5);
  while (spin.limit().count() == 0) spin.Observe(milliseconds(5));
  spin.Observe(microseconds(10));
  EXPECT_GT(spin.limit().count(), 0);
}

// ---- ring ----

struct RingHeader {
  uint64_t magic, capacity;
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
};

class ShmRingTest : public testing::Test {
 protected:
  // The test's mapping of a ring and the other end that treats it as hostile.
  void Open(size_t capacity, const std::function<void(RingHeader*)>& damage = {}) {
    const std::string name = Name("ring");
    auto listener = RegionListener::Listen(name);
    ASSERT_TRUE(listener.ok());
    const size_t bytes = ShmRing::RegionBytes(capacity);
    auto mine = ShareRegion(name, bytes, Soon(), [&](std::byte* data) {
      ShmRing::Initialize(data, bytes);
      if (damage) damage(reinterpret_cast<RingHeader*>(data));
    });
    ASSERT_TRUE(mine.ok()) << mine.status();
    region_ = *std::move(mine);
    auto theirs = (*listener)->Accept(bytes, Soon());
    ASSERT_TRUE(theirs.ok()) << theirs.status();
    auto ring = ShmRing::Attach(*std::move(theirs), microseconds(0));
    status_ = ring.status();
    if (ring.ok()) ring_ = *std::move(ring);
  }
  RingHeader* header() { return reinterpret_cast<RingHeader*>(region_->data()); }

  std::unique_ptr<SharedRegion> region_;
  std::unique_ptr<ShmRing> ring_;
  absl::Status status_;
};

TEST_F(ShmRingTest, AnotherMagicOrCapacityIsRefused) {
  Open(4096, [](RingHeader* h) { ++h->magic; });
  EXPECT_EQ(status_.code(), absl::StatusCode::kDataLoss);
  Open(4096, [](RingHeader* h) { h->capacity *= 1000; });
  EXPECT_EQ(status_.code(), absl::StatusCode::kDataLoss);
}

TEST_F(ShmRingTest, ARegionTooSmallForAHeaderIsRefused) {
  const std::string name = Name("ring");
  auto listener = RegionListener::Listen(name);
  auto mine = ShareRegion(name, 64, Soon(), [](std::byte*) {});
  auto theirs = (*listener)->Accept(1 << 20, Soon());
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  EXPECT_EQ(ShmRing::Attach(*std::move(theirs), microseconds(0)).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(ShmRingTest, ACapacityChangedLaterIsIgnored) {
  Open(4096);
  header()->capacity = 1 << 30;
  header()->written = 5000;  // within what the header says, beyond what there is
  char byte;
  EXPECT_EQ(ring_->Read(&byte, 1, Soon()).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ShmRingTest, AWriterThatRunsBackwardsIsDataLoss) {
  Open(4096);
  header()->written = 10;
  char bytes[8];
  ASSERT_TRUE(ring_->Read(bytes, 8, Soon()).ok());
  header()->written = 3;
  EXPECT_EQ(ring_->Read(bytes, 1, Soon()).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ShmRingTest, AReaderAheadOfTheWriterIsDataLoss) {
  Open(4096);
  header()->read = 1;
  EXPECT_EQ(ring_->Write("x", 1, Soon()).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ShmRingTest, APeerThatIsGoneIsUnavailable) {
  Open(4096);
  region_ = nullptr;
  char byte;
  EXPECT_EQ(ring_->Read(&byte, 1, Soon()).code(), absl::StatusCode::kUnavailable);
}

TEST(RegionListenerTest, MemoryBeyondTheLimitIsRefused) {
  const std::string name = Name("region");
  auto listener = RegionListener::Listen(name);
  auto mine = ShareRegion(name, 8192, Soon(), [](std::byte*) {});
  EXPECT_EQ((*listener)->Accept(4096, Soon()).status().code(), absl::StatusCode::kDataLoss);
}

// ---- mailbox ----

constexpr MailboxShape kShape{.max_tokens = 4, .hidden_dim = 32, .top_k = 2};
constexpr size_t kHeaderBytes = 4096;
// x [4, 32], then ids and weights [4, 2] in 64 bytes each, then y [4, 32].
constexpr size_t kRegionBytes = kHeaderBytes + 512 + 64 + 64 + 512;

struct MailboxBytes {
  uint64_t magic;
  uint32_t max_tokens, hidden_dim, top_k_max;
  std::atomic<uint32_t> closed;
  alignas(64) std::atomic<uint64_t> request;
  SharedEvent request_event;
  uint32_t layer, tokens, top_k;
  alignas(64) std::atomic<uint64_t> reply;
  SharedEvent reply_event;
  uint32_t code;
  char message[160];
};

// Sums each row's ids and takes note of what it was asked.
class SumIds : public ExpertsBackend {
 public:
  absl::Status Compute(const ExpertsRequest& r, float* y) override {
    ++calls;
    for (int t = 0; t < r.tokens; ++t) {
      float sum = 0;
      for (int k = 0; k < r.top_k; ++k) sum += static_cast<float>(r.ids[t * r.top_k + k]);
      for (int i = 0; i < r.hidden_dim; ++i) y[t * r.hidden_dim + i] = sum;
    }
    return absl::OkStatus();
  }
  int calls = 0;
};

class MailboxTest : public testing::Test {
 protected:
  // A server whose client is the test; `prepare` makes the mailbox that it offers.
  void Serve(const std::function<void(MailboxBytes*)>& prepare, size_t bytes = kRegionBytes) {
    const std::string name = Name("mailbox");
    auto server = MailboxServer::Listen(name, kShape, microseconds(0));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    thread_ = std::thread([this] { result_ = server_->Serve(&backend_); });
    auto region = ShareRegion(name, bytes, Soon(), [&](std::byte* data) {
      auto* box = reinterpret_cast<MailboxBytes*>(data);
      box->magic = 0x31584f424c4d5450;
      box->max_tokens = 4;
      box->hidden_dim = 32;
      box->top_k_max = 2;
      prepare(box);
    });
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
  }
  MailboxBytes* box() { return reinterpret_cast<MailboxBytes*>(region_->data()); }
  void Post(uint64_t sequence, uint32_t layer, uint32_t tokens, uint32_t top_k) {
    box()->layer = layer;
    box()->tokens = tokens;
    box()->top_k = top_k;
    box()->request.store(sequence, std::memory_order_release);
    box()->request_event.Notify();
  }
  absl::Status Result() {
    thread_.join();
    return result_;
  }
  void TearDown() override {
    if (!thread_.joinable()) return;
    server_->Close();
    thread_.join();
  }

  SumIds backend_;
  std::unique_ptr<MailboxServer> server_;
  std::thread thread_;
  absl::Status result_;
  std::unique_ptr<SharedRegion> region_;
};

TEST_F(MailboxTest, AMailboxOfAnotherShapeIsDataLoss) {
  Serve([](MailboxBytes* b) { b->hidden_dim = 64; });
  EXPECT_EQ(Result().code(), absl::StatusCode::kDataLoss);
  Serve([](MailboxBytes* b) { b->magic = 0; });
  EXPECT_EQ(Result().code(), absl::StatusCode::kDataLoss);
  Serve([](MailboxBytes*) {}, kRegionBytes - 64);
  EXPECT_EQ(Result().code(), absl::StatusCode::kDataLoss);
}

TEST_F(MailboxTest, RequestsBeyondTheMailboxAreDataLossAndNotComputed) {
  struct Case {
    uint32_t layer, tokens, top_k;
  };
  for (const Case& c : {Case{1, 5, 2}, Case{1, 0, 2}, Case{1, 4, 3}, Case{1, 4, 0},
                        Case{1, 0xffffffff, 2}, Case{0x10000, 1, 1}}) {
    Serve([](MailboxBytes*) {});
    Post(1, c.layer, c.tokens, c.top_k);
    EXPECT_EQ(Result().code(), absl::StatusCode::kDataLoss) << c.tokens << " " << c.top_k;
  }
  EXPECT_EQ(backend_.calls, 0);
}

TEST_F(MailboxTest, AShapeChangedAfterTheHandshakeIsIgnored) {
  Serve([](MailboxBytes*) {});
  Post(1, 0, 1, 1);
  while (box()->reply.load() != 1) std::this_thread::yield();
  box()->max_tokens = 1 << 30;
  Post(2, 0, 1000, 1);
  EXPECT_EQ(Result().code(), absl::StatusCode::kDataLoss);
}

TEST_F(MailboxTest, AClientThatIsGoneIsUnavailable) {
  Serve([](MailboxBytes*) {});
  region_ = nullptr;
  EXPECT_EQ(Result().code(), absl::StatusCode::kUnavailable);
}

// A client whose server is the test.
class MailboxClientTest : public testing::Test {
 protected:
  void Connect(milliseconds timeout) {
    const std::string name = Name("mailbox");
    auto listener = RegionListener::Listen(name);
    ASSERT_TRUE(listener.ok());
    auto client = MailboxClient::Connect(name, kShape, {.epoch = 3, .timeout = timeout}, Soon());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    auto region = (*listener)->Accept(kRegionBytes, Soon());
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
  }
  MailboxBytes* box() { return reinterpret_cast<MailboxBytes*>(region_->data()); }
  absl::Status Post() {
    return client_->Post({.layer = 5,
                          .tokens = 2,
                          .hidden_dim = 32,
                          .top_k = 2,
                          .x = x_,
                          .ids = ids_,
                          .weights = weights_});
  }
  void Reply(uint64_t sequence) {
    box()->reply.store(sequence, std::memory_order_release);
    box()->reply_event.Notify();
  }

  float x_[64] = {}, y_[64] = {}, weights_[4] = {};
  int32_t ids_[4] = {};
  std::unique_ptr<MailboxClient> client_;
  std::unique_ptr<SharedRegion> region_;
};

TEST_F(MailboxClientTest, RepliesOfOtherRequestsMatchNothing) {
  Connect(milliseconds(100));
  client_->BeginStep(1);
  ASSERT_TRUE(Post().ok());
  const uint64_t first = box()->request.load();
  ASSERT_TRUE(Post().ok());  // the same layer once more
  EXPECT_NE(box()->request.load(), first);
  Reply(first);
  EXPECT_EQ(client_->Await(y_).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(MailboxClientTest, AnErrorsTextWithoutAnEndStaysInsideTheMailbox) {
  Connect(milliseconds(20'000));
  ASSERT_TRUE(Post().ok());
  box()->code = static_cast<uint32_t>(absl::StatusCode::kInvalidArgument);
  std::memset(box()->message, 'e', sizeof box()->message);
  Reply(box()->request.load());
  const absl::Status status = client_->Await(y_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), std::string(sizeof box()->message, 'e'));
}

TEST_F(MailboxClientTest, AServerThatIsGoneIsUnavailable) {
  Connect(milliseconds(20'000));
  ASSERT_TRUE(Post().ok());
  region_ = nullptr;
  EXPECT_EQ(client_->Await(y_).code(), absl::StatusCode::kUnavailable);
}

TEST_F(MailboxClientTest, RequestsThatDoNotFitAreRefusedBeforeAnythingIsWritten) {
  Connect(milliseconds(100));
  ExpertsRequest request{.layer = 0, .tokens = 5, .hidden_dim = 32, .top_k = 2};
  EXPECT_EQ(client_->Post(request).code(), absl::StatusCode::kInvalidArgument);
  request.tokens = 1;
  request.hidden_dim = 31;
  EXPECT_EQ(client_->Post(request).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(box()->request.load(), 0u);
}

TEST_F(MailboxTest, AClientAndAServerThatSpinAgree) {
  const std::string name = Name("mailbox");
  auto server = MailboxServer::Listen(name, kShape, microseconds(50));
  ASSERT_TRUE(server.ok());
  server_ = *std::move(server);
  thread_ = std::thread([this] { result_ = server_->Serve(&backend_); });
  auto client = MailboxClient::Connect(
      name, kShape, {.epoch = 1, .spin = microseconds(50), .timeout = milliseconds(20'000)},
      Soon());
  ASSERT_TRUE(client.ok()) << client.status();
  const float x[32] = {}, weights[2] = {};
  for (int32_t i = 0; i < 2000; ++i) {
    const int32_t ids[2] = {i, 1};
    float y[32];
    if (i % 50 == 0) (*client)->BeginStep(static_cast<uint64_t>(i));
    ASSERT_TRUE((*client)
                    ->Post({.layer = i % 7,
                            .tokens = 1,
                            .hidden_dim = 32,
                            .top_k = 2,
                            .x = x,
                            .ids = ids,
                            .weights = weights})
                    .ok());
    ASSERT_TRUE((*client)->Await(y).ok());
    ASSERT_EQ(y[31], static_cast<float>(i + 1));
  }
}

}  // namespace
}  // namespace packtrain
