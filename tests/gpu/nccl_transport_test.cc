// Aim: bundles with tensors in a GPU's memory cross between two processes unchanged and in order,
// and no death, standstill or close of one end leaves the other hanging. Method: two processes on a
// card each; where there is only one, on that, which NCCL joins over its network path because each
// has an NCCL_HOSTID of its own. The program is its own peer: nccl_transport_test --peer ROLE EPOCH.

#include "worker/transport/nccl/nccl_transport.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "worker/transport/nccl/nccl_library.h"
#include "worker/transport/shm/shm_transport.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr int kBundles = 60;
constexpr uint32_t kCols = 6144;

Clock::time_point In(int milliseconds) {
  return Clock::now() + std::chrono::milliseconds(milliseconds);
}

// Rows of bundle `step`: none, one, several, and once a chunk of 50 MB.
uint32_t Rows(int step) { return step == 40 ? 2048 : static_cast<uint32_t>(step % 9); }

std::vector<uint32_t> Values(int step, uint32_t rows) {
  std::vector<uint32_t> values(size_t{rows} * kCols);
  uint32_t x = 12345 + static_cast<uint32_t>(step);
  for (uint32_t& value : values) value = x = x * 1664525 + 1013904223;
  return values;
}

void Fill(int step, uint64_t epoch, uint32_t rows, Bundle* bundle) {
  bundle->epoch = epoch;
  bundle->step_id = static_cast<uint64_t>(step);
  bundle->ShapeOnDevice(0, "hidden", ElementType::kF32, rows, kCols, bundle->device_memory.data());
  const std::vector<uint32_t> values = Values(step, rows);
  cudaMemcpy(bundle->tensors[0].device, values.data(), values.size() * 4, cudaMemcpyHostToDevice);
  BundleTensor* tokens = bundle->Shape(1, "tokens", ElementType::kI32, 1, 1);
  tokens->i32()[0] = step;
}

bool Holds(const Bundle& bundle, int step, uint32_t rows) {
  if (bundle.step_id != static_cast<uint64_t>(step) || bundle.tensors.size() != 2) return false;
  const BundleTensor& hidden = bundle.tensors[0];
  if (hidden.rows != rows || hidden.cols != kCols || hidden.device == nullptr) return false;
  std::vector<uint32_t> values(size_t{rows} * kCols);
  cudaMemcpy(values.data(), hidden.device, values.size() * 4, cudaMemcpyDeviceToHost);
  return values == Values(step, rows) && bundle.tensors[1].i32()[0] == step;
}

// The card of the parent or the child.
int DeviceOf(std::string_view id) {
  int count = 0;
  static_cast<void>(cudaGetDeviceCount(&count));
  return id == "child" && count > 1 ? 1 : 0;
}

void MakeHostOf(const char* id) {
  if (DeviceOf("child") == DeviceOf("parent")) setenv("NCCL_HOSTID", id, 1);
}

// One end: a transport and what it takes.
struct End {
  End(const std::string& id, uint64_t epoch)
      : info(Info(id, epoch)),
        shm(MakeShmTransport(std::chrono::nanoseconds(0))),
        nccl(MakeNcclTransport(DeviceOf(id), info, {shm.get()})) {
    cudaSetDevice(DeviceOf(id));
  }
  static PeerInfo Info(const std::string& id, uint64_t epoch) {
    return {id, epoch, "this-host", "cuda", "", (*LoadNccl())->version, id};
  }
  PeerInfo Peer(const std::string& id) const { return Info(id, info.epoch); }
  PeerInfo info;
  std::unique_ptr<Transport> shm, nccl;
};

// The other process. 0: all was as it should be.
int RunPeer(const std::string& role, uint64_t epoch) {
  End self("child", epoch);
  const PeerInfo parent = self.Peer("parent");
  if (role == "send" || role == "flood") {
    auto link = self.nccl->OpenSend({"child", "parent", "data"}, parent, kMaxBytes);
    if (!link.ok()) {
      std::fprintf(stderr, "%s\n", link.status().ToString().c_str());
      return 1;
    }
    Bundle bundle;
    (*link)->Lend(&bundle);
    for (int step = 0; role == "flood" || step < kBundles; ++step) {
      Fill(step, epoch, role == "flood" ? 512 : Rows(step), &bundle);
      if (!(*link)->Send(bundle, In(60000)).ok()) return 1;
    }
    pause();  // what a sender that ends has sent may be lost
  }
  auto link = self.nccl->OpenReceive({"parent", "child", "data"}, parent, kMaxBytes);
  if (!link.ok()) return 1;
  Bundle bundle;
  for (int step = 0; step < (role == "receive" ? kBundles : 1); ++step) {
    if (!(*link)->Receive(&bundle, In(60000)).ok()) return 1;
    if (!Holds(bundle, step, role == "receive" ? Rows(step) : 512)) return 3;
  }
  if (role != "receive") pause();
  return 0;
}

class Child {
 public:
  Child(const std::string& role, uint64_t epoch) {
    const std::string number = absl::StrCat(epoch);
    pid_ = fork();
    if (pid_ == 0) {
      execl("/proc/self/exe", "nccl_transport_test", "--peer", role.c_str(), number.c_str(),
            nullptr);
      _exit(127);
    }
  }
  ~Child() { Signal(SIGKILL), Wait(); }
  void Signal(int number) {
    if (pid_ > 0) kill(pid_, number);
  }
  int Wait() {
    int status = 0;
    if (pid_ > 0) waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
};

class NcclTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!LoadNccl().ok()) GTEST_SKIP() << LoadNccl().status();
    static uint64_t tests = 0;
    epoch_ = static_cast<uint64_t>(getpid()) * 1000 + 10 * ++tests;
    self_ = std::make_unique<End>("parent", epoch_);
  }
  std::unique_ptr<ReceiveLink> Receiver() {
    auto link =
        self_->nccl->OpenReceive({"child", "parent", "data"}, self_->Peer("child"), kMaxBytes);
    EXPECT_TRUE(link.ok()) << link.status();
    return link.ok() ? *std::move(link) : nullptr;
  }
  std::unique_ptr<SendLink> Sender(Bundle* bundle) {
    auto link = self_->nccl->OpenSend({"parent", "child", "data"}, self_->Peer("child"), kMaxBytes);
    EXPECT_TRUE(link.ok()) << link.status();
    if (!link.ok()) return nullptr;
    (*link)->Lend(bundle);
    EXPECT_EQ(bundle->device_memory.size(), kMaxBytes);
    return *std::move(link);
  }
  // Sends until that fails.
  absl::Status SendOn(SendLink* link, Bundle* bundle, int timeout_ms) {
    absl::Status status;
    for (int step = 0; step < 1000 && status.ok(); ++step) {
      Fill(step, epoch_, 512, bundle);
      status = link->Send(*bundle, In(timeout_ms));
    }
    return status;
  }
  uint64_t epoch_ = 0;
  std::unique_ptr<End> self_;
};

TEST_F(NcclTransportTest, BundlesArriveInOrderAndUnchanged) {
  const auto link = Receiver();
  Child child("send", epoch_);
  Bundle bundle;
  for (int step = 0; step < kBundles; ++step) {
    const absl::Status status = link->Receive(&bundle, In(20000));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Holds(bundle, step, Rows(step))) << "bundle " << step;
  }
  EXPECT_EQ(link->stats().bundles, static_cast<uint64_t>(kBundles));
  child.Signal(SIGKILL);
  EXPECT_EQ(link->Receive(&bundle, In(5000)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(NcclTransportTest, BundlesOfAnOlderEpochAreDropped) {
  Child child("receive", epoch_);
  Bundle bundle;
  const auto link = Sender(&bundle);
  ASSERT_NE(link, nullptr);
  for (int step = 0; step < kBundles; ++step) {
    if (step % 7 == 0) {
      Fill(1000, epoch_ - 1, 3, &bundle);
      ASSERT_TRUE(link->Send(bundle, In(20000)).ok());
    }
    Fill(step, epoch_, Rows(step), &bundle);
    const absl::Status status = link->Send(bundle, In(20000));
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(child.Wait(), 0);
}

TEST_F(NcclTransportTest, ASenderKilledAmidABundleIsUnavailable) {
  const auto link = Receiver();
  Child child("flood", epoch_);
  Bundle bundle;
  absl::Status status = link->Receive(&bundle, In(20000));
  ASSERT_TRUE(status.ok()) << status;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  child.Signal(SIGKILL);
  for (int i = 0; i < 1000 && status.ok(); ++i) status = link->Receive(&bundle, In(10000));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

// Between cards of one host NCCL itself does not notice the death; then the deadline ends the send.
TEST_F(NcclTransportTest, AReceiverKilledAmidABundleEndsTheSend) {
  Child child("stand", epoch_);
  Bundle bundle;
  const auto link = Sender(&bundle);
  ASSERT_NE(link, nullptr);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    child.Signal(SIGKILL);
  });
  const absl::Status status = SendOn(link.get(), &bundle, 2000);
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) << status;
  killer.join();
}

TEST_F(NcclTransportTest, AStoppedReceiverIsADeadlineForTheSender) {
  Child child("stand", epoch_);
  Bundle bundle;
  const auto link = Sender(&bundle);
  ASSERT_NE(link, nullptr);
  child.Signal(SIGSTOP);
  EXPECT_EQ(SendOn(link.get(), &bundle, 300).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(link->Send(bundle, In(300)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(NcclTransportTest, CloseFromAnotherThreadWakesASender) {
  Child child("stand", epoch_);
  Bundle bundle;
  const auto link = Sender(&bundle);
  ASSERT_NE(link, nullptr);
  std::thread closer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    link->Close();
  });
  EXPECT_EQ(SendOn(link.get(), &bundle, 20000).code(), absl::StatusCode::kUnavailable);
  closer.join();
}

TEST_F(NcclTransportTest, ClosingAReceiverThatNobodyJoinedWakesIt) {
  const auto link = Receiver();
  std::thread closer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    link->Close();
  });
  Bundle bundle;
  EXPECT_EQ(link->Receive(&bundle, In(20000)).code(), absl::StatusCode::kUnavailable);
  closer.join();
}

TEST_F(NcclTransportTest, AfterADeathTheLinkIsMadeAnewUnderANewEpoch) {
  for (int death = 0; death < 3; ++death) {
    const auto link = Receiver();
    Bundle bundle;
    {
      Child child("flood", epoch_);
      const absl::Status status = link->Receive(&bundle, In(20000));
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(Holds(bundle, 0, 512));
    }
    self_ = std::make_unique<End>("parent", ++epoch_);
  }
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--peer") {
    packtrain::MakeHostOf("child");
    return packtrain::RunPeer(argv[2], std::strtoull(argv[3], nullptr, 10));
  }
  packtrain::MakeHostOf("parent");
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
