// Aim: who may join a worker, what ends a control stream, and that health is answered meanwhile.
// Method: the server on a socket of its own with fake stages; gRPC's plain stubs as coordinators.

#include "worker/server/control_server.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "common/rpc/protocol_version.h"
#include "proto/control.grpc.pb.h"
#include "proto/health.grpc.pb.h"
#include "tests/support/fake_stage.h"
#include "worker/transport/grpc/tensor_service.h"

namespace packtrain {
namespace {

// A coordinator's end of a stream.
class Coordinator {
 public:
  explicit Coordinator(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::Worker::NewStub(channel)), stream_(stub_->Control(&context_)) {}

  void Join(uint64_t epoch, uint32_t version = kProtocolVersion) {
    v1::CoordinatorMessage message;
    message.mutable_join()->set_worker_id("test/worker");
    message.mutable_join()->set_epoch(epoch);
    message.mutable_join()->set_protocol_version(version);
    Send(message);
  }
  void Send(const v1::CoordinatorMessage& message) { stream_->Write(message); }
  // The kind of the next message; MESSAGE_NOT_SET at the end of the stream.
  v1::WorkerMessage::MessageCase Next() {
    v1::WorkerMessage message;
    return stream_->Read(&message) ? message.message_case() : v1::WorkerMessage::MESSAGE_NOT_SET;
  }
  grpc::Status Finish() {
    while (Next() != v1::WorkerMessage::MESSAGE_NOT_SET) {
    }
    return stream_->Finish();
  }

 private:
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>> stream_;
};

class ControlServerTest : public testing::Test {
 protected:
  ControlServerTest() : control_(LoadFakeModel, &tensors_, [this] { shut_down_ = true; }) {
    const std::string address = absl::StrCat("unix:/tmp/packtrain-control-test-", getpid());
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    control_.Register(&builder);
    server_ = builder.BuildAndStart();
    control_.Start({"cpu", address});
    channel_ = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  }
  ~ControlServerTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status CheckHealth(const std::string& service) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status =
        grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
    EXPECT_EQ(status.ok(), response.status() == grpc::health::v1::HealthCheckResponse::SERVING);
    return status;
  }

  TensorService tensors_;
  std::atomic<bool> shut_down_ = false;
  std::unique_ptr<grpc::Server> server_;
  ControlServer control_;
  std::shared_ptr<grpc::Channel> channel_;
};

void ExpectEnd(Coordinator* coordinator, grpc::StatusCode code, const std::string& part) {
  const grpc::Status status = coordinator->Finish();
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message().find(part), std::string::npos) << status.error_message();
}

TEST_F(ControlServerTest, AnotherProtocolVersionIsRefusedNamingBoth) {
  Coordinator coordinator(channel_);
  coordinator.Join(1, kProtocolVersion + 1);
  ExpectEnd(&coordinator, grpc::StatusCode::FAILED_PRECONDITION,
            absl::StrCat("protocol version ", kProtocolVersion + 1, ", this worker speaks ",
                         kProtocolVersion));
  // It goes on with a right one.
  Coordinator right(channel_);
  right.Join(2);
  EXPECT_EQ(right.Next(), v1::WorkerMessage::kJoined);
}

TEST_F(ControlServerTest, AnEpochThatIsNotNewerIsRefusedAndTheStreamInPlaceGoesOn) {
  Coordinator first(channel_);
  first.Join(5);
  ASSERT_EQ(first.Next(), v1::WorkerMessage::kJoined);
  for (const uint64_t epoch : {4ULL, 5ULL}) {
    Coordinator stale(channel_);
    stale.Join(epoch);
    ExpectEnd(&stale, grpc::StatusCode::FAILED_PRECONDITION,
              absl::StrCat("epoch ", epoch, " is not above 5"));
  }
  v1::CoordinatorMessage drain;
  drain.mutable_drain();
  first.Send(drain);
  EXPECT_EQ(first.Next(), v1::WorkerMessage::kDrained);
}

TEST_F(ControlServerTest, ANewerEpochEndsTheStreamOfAnOlderOne) {
  Coordinator first(channel_), second(channel_);
  first.Join(1);
  ASSERT_EQ(first.Next(), v1::WorkerMessage::kJoined);
  second.Join(2);
  EXPECT_EQ(second.Next(), v1::WorkerMessage::kJoined);
  ExpectEnd(&first, grpc::StatusCode::CANCELLED, "");
}

TEST_F(ControlServerTest, WhatIsNoJoinEndsTheStream) {
  Coordinator coordinator(channel_);
  coordinator.Send({});
  ExpectEnd(&coordinator, grpc::StatusCode::INVALID_ARGUMENT, "must be Join");
}

TEST_F(ControlServerTest, StepsOfAnotherEpochAreIgnored) {
  Coordinator coordinator(channel_);
  coordinator.Join(3);
  v1::CoordinatorMessage steps, drain;
  steps.mutable_steps()->set_epoch(2);
  steps.mutable_steps()->add_steps()->set_id(1);
  drain.mutable_drain();
  coordinator.Send(steps);
  coordinator.Send(drain);
  EXPECT_EQ(coordinator.Next(), v1::WorkerMessage::kJoined);
  EXPECT_EQ(coordinator.Next(), v1::WorkerMessage::kDrained);
  // Of its own epoch they would be a breach of the protocol: nothing is loaded.
  steps.mutable_steps()->set_epoch(3);
  coordinator.Send(steps);
  ExpectEnd(&coordinator, grpc::StatusCode::INVALID_ARGUMENT, "steps before connect");
}

TEST_F(ControlServerTest, ShutdownEndsTheStreamAndIsPassedOn) {
  Coordinator coordinator(channel_);
  coordinator.Join(1);
  v1::CoordinatorMessage shutdown;
  shutdown.mutable_shutdown();
  coordinator.Send(shutdown);
  EXPECT_TRUE(coordinator.Finish().ok());
  EXPECT_TRUE(shut_down_);
}

TEST_F(ControlServerTest, HealthIsAnsweredBesideAStream) {
  Coordinator coordinator(channel_);
  coordinator.Join(1);
  ASSERT_EQ(coordinator.Next(), v1::WorkerMessage::kJoined);
  EXPECT_TRUE(CheckHealth("").ok());
  EXPECT_EQ(CheckHealth("nobody").error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace packtrain
