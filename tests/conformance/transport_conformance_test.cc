// Aim: every transport behaves the same. Method: one suite of behaviours, run against each of them
// with two ends in this process, or with a child process where an end must die.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/conformance/transport_endpoint.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kEpoch = 1000;
constexpr size_t kMaxBytes = 8 << 20;

Clock::time_point Soon() { return Clock::now() + std::chrono::milliseconds(50); }
Clock::time_point Later() { return Clock::now() + std::chrono::seconds(30); }

// Content that tells step, tensor and place apart.
void Fill(BundleTensor* t, uint64_t seed) {
  for (size_t i = 0; i < t->data.size(); ++i) {
    t->data[i] = static_cast<std::byte>((seed * 131 + i * 7 + (i >> 8)) & 0xff);
  }
}

Bundle MakeBundle(uint64_t step, uint32_t rows, uint32_t cols) {
  Bundle bundle;
  bundle.epoch = kEpoch;
  bundle.step_id = step;
  Fill(bundle.Shape(0, "hidden", ElementType::kF32, rows, cols), step);
  Fill(bundle.Shape(1, "selection", ElementType::kI32, rows, 3), step + 1);
  return bundle;
}

void ExpectSame(const Bundle& a, const Bundle& b) {
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.step_id, b.step_id);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    EXPECT_EQ(a.tensors[i].name, b.tensors[i].name);
    EXPECT_EQ(a.tensors[i].type, b.tensors[i].type);
    EXPECT_EQ(a.tensors[i].rows, b.tensors[i].rows);
    EXPECT_EQ(a.tensors[i].cols, b.tensors[i].cols);
    EXPECT_TRUE(a.tensors[i].data == b.tensors[i].data) << "tensor " << i;
  }
}

class TransportConformanceTest : public testing::TestWithParam<std::string> {
 protected:
  TransportConformanceTest() {
    char path[] = "/tmp/packtrain-conformance-XXXXXX";
    directory_ = mkdtemp(path);
    epoch_ = kEpoch + static_cast<uint64_t>(getpid()) * 1000;
    a_ = std::make_unique<TransportEndpoint>(GetParam(), "a", Address("a"), epoch_);
    b_ = std::make_unique<TransportEndpoint>(GetParam(), "b", Address("b"), epoch_);
  }
  ~TransportConformanceTest() override {
    send_.reset();
    receive_.reset();
    a_.reset();
    b_.reset();
    for (const char* name : {"a", "b", "child"})
      unlink(absl::StrCat(directory_, "/", name).c_str());
    rmdir(directory_.c_str());
  }
  std::string Address(const std::string& name) { return "unix:" + directory_ + "/" + name; }

  // A link a -> b. The receiver opens first only because one thread does both.
  void Open(size_t send_max = kMaxBytes, size_t receive_max = kMaxBytes) {
    const ChannelId channel{"a", "b", "hidden"};
    auto receive = b_->transport().OpenReceive(channel, a_->info(), receive_max);
    ASSERT_TRUE(receive.ok()) << receive.status();
    receive_ = *std::move(receive);
    auto send = a_->transport().OpenSend(channel, b_->info(), send_max);
    ASSERT_TRUE(send.ok()) << send.status();
    send_ = *std::move(send);
  }
  Bundle Make(uint64_t step, uint32_t rows, uint32_t cols) {
    Bundle bundle = MakeBundle(step, rows, cols);
    bundle.epoch = epoch_;
    return bundle;
  }

  std::string directory_;
  uint64_t epoch_ = 0;
  std::unique_ptr<TransportEndpoint> a_, b_;
  std::unique_ptr<SendLink> send_;
  std::unique_ptr<ReceiveLink> receive_;
};

TEST_P(TransportConformanceTest, BundlesArriveInOrderAndUnchanged) {
  Open();
  std::thread sender([this] {
    for (uint32_t step = 0; step < 200; ++step) {
      const absl::Status status = send_->Send(Make(step, step % 7, 1 + step * 31 % 6000), Later());
      ASSERT_TRUE(status.ok()) << status;
    }
  });
  Bundle got;
  for (uint32_t step = 0; step < 200; ++step) {
    const absl::Status status = receive_->Receive(&got, Later());
    ASSERT_TRUE(status.ok()) << status;
    ExpectSame(got, Make(step, step % 7, 1 + step * 31 % 6000));
  }
  sender.join();
  EXPECT_EQ(send_->stats().bundles, 200u);
  EXPECT_EQ(receive_->stats().bytes, send_->stats().bytes);
}

TEST_P(TransportConformanceTest, ABundleOfSeveralFramesArrivesUnchanged) {
  Open();
  const Bundle bundle = Make(7, 300, 6144);
  std::thread sender([&] {
    const absl::Status status = send_->Send(bundle, Later());
    EXPECT_TRUE(status.ok()) << status;
  });
  Bundle got;
  const absl::Status status = receive_->Receive(&got, Later());
  EXPECT_TRUE(status.ok()) << status;
  ExpectSame(got, bundle);
  sender.join();
}

TEST_P(TransportConformanceTest, AnEmptyBundleAndAnErrorPass) {
  Open();
  Bundle empty;
  empty.epoch = epoch_;
  empty.step_id = 3;
  Bundle error = empty;
  error.error = absl::UnavailableError("experts worker is gone");
  ASSERT_TRUE(send_->Send(empty, Later()).ok());
  ASSERT_TRUE(send_->Send(error, Later()).ok());
  Bundle got;
  ASSERT_TRUE(receive_->Receive(&got, Later()).ok());
  ExpectSame(got, empty);
  EXPECT_TRUE(got.error.ok());
  ASSERT_TRUE(receive_->Receive(&got, Later()).ok());
  EXPECT_EQ(got.error, error.error);
}

TEST_P(TransportConformanceTest, DataThatDoesNotMatchItsShapeIsRefusedBeforeSending) {
  Open();
  Bundle bundle = Make(1, 2, 10);
  bundle.tensors[0].rows = 3;
  EXPECT_EQ(send_->Send(bundle, Later()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(send_->Send(Make(2, 2, 10), Later()).ok());
}

TEST_P(TransportConformanceTest, MoreThanAgreedIsRefusedByTheSender) {
  Open(/*send_max=*/1000);
  EXPECT_EQ(send_->Send(Make(1, 1, 1000), Later()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportConformanceTest, MoreThanAgreedIsRefusedByTheReceiver) {
  Open(/*send_max=*/kMaxBytes, /*receive_max=*/1000);
  ASSERT_TRUE(send_->Send(Make(1, 1, 1000), Later()).ok());
  Bundle got;
  EXPECT_EQ(receive_->Receive(&got, Later()).code(), absl::StatusCode::kDataLoss);
  // And that closed the link.
  EXPECT_EQ(receive_->Receive(&got, Later()).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportConformanceTest, ATooLateSenderIsADeadlineAndTheLinkStaysUsable) {
  Open();
  Bundle got;
  EXPECT_EQ(receive_->Receive(&got, Soon()).code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(send_->Send(Make(1, 1, 8), Later()).ok());
  const absl::Status status = receive_->Receive(&got, Later());
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(TransportConformanceTest, ATooSlowReceiverIsADeadlineForTheSender) {
  Open();
  const Bundle bundle = Make(1, 256, 6144);
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = send_->Send(bundle, Soon());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_FALSE(send_->Send(bundle, Soon()).ok());
}

TEST_P(TransportConformanceTest, ASlowReceiverLosesNothing) {
  Open();
  std::thread sender([this] {
    for (uint64_t step = 0; step < 12; ++step) {
      const absl::Status status = send_->Send(Make(step, 200, 6144), Later());
      EXPECT_TRUE(status.ok()) << status;
    }
  });
  Bundle got;
  for (uint64_t step = 0; step < 12; ++step) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const absl::Status status = receive_->Receive(&got, Later());
    EXPECT_TRUE(status.ok()) << status;
    ExpectSame(got, Make(step, 200, 6144));
  }
  sender.join();
}

TEST_P(TransportConformanceTest, BundlesOfAnOlderEpochAreDropped) {
  Open();
  Bundle old = Make(1, 1, 8);
  old.epoch = epoch_ - 1;
  ASSERT_TRUE(send_->Send(old, Later()).ok());
  ASSERT_TRUE(send_->Send(Make(2, 1, 8), Later()).ok());
  Bundle got;
  ASSERT_TRUE(receive_->Receive(&got, Later()).ok());
  EXPECT_EQ(got.step_id, 2u);
}

TEST_P(TransportConformanceTest, CloseFromAnotherThreadWakesAWaitingReceiver) {
  Open();
  std::thread closer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    receive_->Close();
  });
  Bundle got;
  EXPECT_EQ(receive_->Receive(&got, Later()).code(), absl::StatusCode::kUnavailable);
  closer.join();
}

TEST_P(TransportConformanceTest, CloseBeforeAnybodyConnectedWakesAWaitingReceiver) {
  auto receive = b_->transport().OpenReceive({"a", "b", "x"}, a_->info(), kMaxBytes);
  ASSERT_TRUE(receive.ok());
  std::thread closer([&] { (*receive)->Close(); });
  Bundle got;
  EXPECT_EQ((*receive)->Receive(&got, Later()).code(), absl::StatusCode::kUnavailable);
  closer.join();
}

TEST_P(TransportConformanceTest, CloseFromAnotherThreadWakesAWaitingSender) {
  Open();
  std::thread closer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    send_->Close();
  });
  const Bundle bundle = Make(1, 256, 6144);
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = send_->Send(bundle, Later());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  closer.join();
}

TEST_P(TransportConformanceTest, CloseTwiceIsCloseOnce) {
  Open();
  send_->Close();
  send_->Close();
  receive_->Close();
  receive_->Close();
  Bundle got;
  EXPECT_EQ(send_->Send(Make(1, 1, 8), Later()).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(receive_->Receive(&got, Later()).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportConformanceTest, WhatWasSentBeforeTheSenderWentIsStillReceived) {
  Open();
  ASSERT_TRUE(send_->Send(Make(1, 1, 8), Later()).ok());
  ASSERT_TRUE(send_->Send(Make(2, 50, 6144), Later()).ok());
  send_.reset();
  Bundle got;
  ASSERT_TRUE(receive_->Receive(&got, Later()).ok());
  const absl::Status status = receive_->Receive(&got, Later());
  ASSERT_TRUE(status.ok()) << status;
  ExpectSame(got, Make(2, 50, 6144));
  EXPECT_EQ(receive_->Receive(&got, Later()).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportConformanceTest, AChannelCanBeOpenedAgainAfterItsEnd) {
  Open();
  send_.reset();
  receive_.reset();
  Open();
  ASSERT_TRUE(send_->Send(Make(5, 1, 8), Later()).ok());
  Bundle got;
  ASSERT_TRUE(receive_->Receive(&got, Later()).ok());
  EXPECT_EQ(got.step_id, 5u);
}

TEST_P(TransportConformanceTest, BothEndsMayOpenInAnyOrder) {
  const ChannelId channel{"a", "b", "late"};
  std::unique_ptr<ReceiveLink> late;
  std::thread receiver([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    auto receive = b_->transport().OpenReceive(channel, a_->info(), kMaxBytes);
    ASSERT_TRUE(receive.ok()) << receive.status();
    late = *std::move(receive);
  });
  auto send = a_->transport().OpenSend(channel, b_->info(), kMaxBytes);
  receiver.join();
  ASSERT_TRUE(send.ok()) << send.status();
  ASSERT_TRUE((*send)->Send(Make(1, 1, 8), Later()).ok());
  Bundle got;
  EXPECT_TRUE(late->Receive(&got, Later()).ok());
}

// The other end as a process.
class Child {
 public:
  Child(const std::string& transport, const std::string& role, const std::string& own,
        const std::string& peer, uint64_t epoch) {
    const std::string program = std::string(PACKTRAIN_BINARY_DIR) + "/tests/transport_peer";
    const std::string number = absl::StrCat(epoch);
    pid_ = vfork();
    if (pid_ == 0) {
      execl(program.c_str(), program.c_str(), transport.c_str(), role.c_str(), own.c_str(),
            peer.c_str(), number.c_str(), nullptr);
      _exit(127);
    }
  }
  ~Child() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

TEST_P(TransportConformanceTest, ASenderKilledAmidAMessageIsUnavailable) {
  auto parent = std::make_unique<TransportEndpoint>(GetParam(), "parent", Address("p"), epoch_);
  const PeerInfo child{"child", epoch_, "this-host", "cpu", Address("child")};
  auto link = parent->transport().OpenReceive({"child", "parent", "data"}, child, kMaxBytes);
  ASSERT_TRUE(link.ok());
  Child process(GetParam(), "send", child.data_address, parent->info().data_address, epoch_);
  Bundle got;
  absl::Status status = (*link)->Receive(&got, Later());
  ASSERT_TRUE(status.ok()) << status;
  // Its links are full now: it stands in the middle of a bundle.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  process.Kill();
  for (int i = 0; i < 100 && status.ok(); ++i) status = (*link)->Receive(&got, Later());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  unlink((directory_ + "/p").c_str());
}

TEST_P(TransportConformanceTest, AReceiverKilledAmidAMessageIsUnavailable) {
  const PeerInfo child{"child", epoch_, "this-host", "cpu", Address("child")};
  Child process(GetParam(), "receive", child.data_address, Address("parent"), epoch_);
  auto link = a_->transport().OpenSend({"parent", "child", "data"}, child, kMaxBytes);
  ASSERT_TRUE(link.ok()) << link.status();
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    process.Kill();
  });
  const Bundle bundle = Make(1, 256, 6144);
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = (*link)->Send(bundle, Later());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  killer.join();
}

INSTANTIATE_TEST_SUITE_P(All, TransportConformanceTest, testing::Values("shm", "grpc"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace packtrain
