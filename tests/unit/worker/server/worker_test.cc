// Aim: a worker hears its stream while it loads, ends a load with the stream, and refuses messages
// that break the protocol or ask for the impossible. Method: messages handed to Handle, answers
// collected.

#include "worker/server/worker.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "common/rpc/protocol_version.h"
#include "proto/control.pb.h"
#include "tests/support/fake_stage.h"
#include "worker/server/worker_messages.h"
#include "worker/transport/grpc/tensor_service.h"

namespace packtrain {
namespace {

v1::CoordinatorMessage LoadMessage(int load_ms) {
  v1::CoordinatorMessage message;
  v1::Load* load = message.mutable_load();
  load->set_model_path("fake:load_ms=" + std::to_string(load_ms));
  load->set_segment_fd(-1);
  v1::StageSpec* stage = load->mutable_stage();
  stage->mutable_layers()->set_last(2);
  stage->set_embeds(true);
  stage->set_has_head(true);
  stage->set_num_pages(4);
  stage->set_num_slots(2);
  stage->set_max_tokens(8);
  return message;
}

class WorkerTest : public testing::Test {
 protected:
  WorkerTest()
      : worker_(std::make_unique<Worker>(WorkerOptions{"cpu", "unix:/nowhere"}, LoadFakeModel,
                                         &service_, [this](const v1::WorkerMessage& m) {
                                           std::lock_guard lock(mutex_);
                                           messages_.push_back(m);
                                           changed_.notify_all();
                                         })) {
    v1::CoordinatorMessage message;
    message.mutable_join()->set_worker_id("test/worker");
    message.mutable_join()->set_epoch(1);
    message.mutable_join()->set_protocol_version(kProtocolVersion);
    EXPECT_TRUE(worker_->Handle(message).ok());
  }

  // The first message of that kind.
  v1::WorkerMessage Await(v1::WorkerMessage::MessageCase kind) {
    std::unique_lock lock(mutex_);
    v1::WorkerMessage found;
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60),
                                  [&] {
                                    for (const v1::WorkerMessage& m : messages_) {
                                      if (m.message_case() == kind) found = m;
                                    }
                                    return found.message_case() == kind;
                                  }))
        << "no message of kind " << kind;
    return found;
  }

  TensorService service_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<v1::WorkerMessage> messages_;
  std::unique_ptr<Worker> worker_;
};

constexpr int kForever = 3'600'000;

TEST_F(WorkerTest, ShutdownAndCancelAreHeardDuringALoad) {
  ASSERT_TRUE(worker_->Handle(LoadMessage(kForever)).ok());
  Await(v1::WorkerMessage::kLoadProgress);
  v1::CoordinatorMessage cancel, shutdown;
  cancel.mutable_cancel()->set_through_step(9);
  shutdown.mutable_shutdown();
  EXPECT_TRUE(worker_->Handle(cancel).ok());
  EXPECT_EQ(worker_->Handle(shutdown).code(), absl::StatusCode::kCancelled);
}

TEST_F(WorkerTest, ALoadEndsWithItsStream) {
  ASSERT_TRUE(worker_->Handle(LoadMessage(kForever)).ok());
  Await(v1::WorkerMessage::kLoadProgress);
  worker_ = nullptr;
  EXPECT_EQ(Await(v1::WorkerMessage::kFailed).failed().code(),
            static_cast<uint32_t>(absl::StatusCode::kCancelled));
}

TEST_F(WorkerTest, ASecondRequestOrAStepBeforeTheAnswerBreaksTheProtocol) {
  ASSERT_TRUE(worker_->Handle(LoadMessage(kForever)).ok());
  EXPECT_EQ(worker_->Handle(LoadMessage(1)).code(), absl::StatusCode::kInvalidArgument);
  v1::CoordinatorMessage steps;
  steps.mutable_steps()->set_epoch(1);
  EXPECT_EQ(worker_->Handle(steps).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WorkerTest, AfterTheAnswerTheNextRequestIsTaken) {
  ASSERT_TRUE(worker_->Handle(LoadMessage(1)).ok());
  Await(v1::WorkerMessage::kLoaded);
  v1::CoordinatorMessage connect;
  connect.mutable_connect()->set_epoch(2);
  connect.mutable_connect()->set_step_timeout_ms(1000);
  ASSERT_TRUE(worker_->Handle(connect).ok());
  EXPECT_EQ(Await(v1::WorkerMessage::kConnected).connected().epoch(), 2u);
  v1::CoordinatorMessage drain;
  drain.mutable_drain();
  ASSERT_TRUE(worker_->Handle(drain).ok());
  Await(v1::WorkerMessage::kDrained);
}

TEST_F(WorkerTest, ConnectBeforeLoadFailsAndTheStreamGoesOn) {
  v1::CoordinatorMessage connect;
  connect.mutable_connect()->set_epoch(2);
  ASSERT_TRUE(worker_->Handle(connect).ok());
  const v1::Failed failed = Await(v1::WorkerMessage::kFailed).failed();
  EXPECT_EQ(failed.request(), "connect");
  EXPECT_EQ(failed.code(), static_cast<uint32_t>(absl::StatusCode::kFailedPrecondition));
}

TEST_F(WorkerTest, ASecondJoinAndAnEmptyMessageBreakTheProtocol) {
  v1::CoordinatorMessage join;
  join.mutable_join()->set_worker_id("other");
  EXPECT_EQ(worker_->Handle(join).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(worker_->Handle({}).code(), absl::StatusCode::kInvalidArgument);
}

struct Damage {
  const char* name;
  void (*apply)(v1::Load*);
};

class DecodeLoadTest : public testing::TestWithParam<Damage> {};

TEST_P(DecodeLoadTest, IsRefusedByTheFieldsName) {
  v1::Load load = LoadMessage(1).load();
  ASSERT_TRUE(DecodeLoad(load).ok());
  GetParam().apply(&load);
  const auto request = DecodeLoad(load);
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(request.status().message().find(GetParam().name), std::string::npos)
      << request.status();
}

INSTANTIATE_TEST_SUITE_P(
    Fields, DecodeLoadTest,
    testing::Values(
        Damage{"threads", [](v1::Load* l) { l->set_threads(0xffffffff); }},
        Damage{"layers", [](v1::Load* l) { l->mutable_stage()->mutable_layers()->set_first(3); }},
        Damage{"resident_experts",
               [](v1::Load* l) {
                 l->mutable_stage()->mutable_resident_experts()->set_last(0xffffffff);
               }},
        Damage{"kv_cache", [](v1::Load* l) { l->mutable_stage()->set_kv_cache(4); }},
        Damage{"num_pages", [](v1::Load* l) { l->mutable_stage()->set_num_pages(0xffffffff); }},
        Damage{"num_slots", [](v1::Load* l) { l->mutable_stage()->set_num_slots(0); }},
        Damage{"num_snapshots",
               [](v1::Load* l) { l->mutable_stage()->set_num_snapshots(0x80000000); }},
        Damage{"max_tokens", [](v1::Load* l) { l->mutable_stage()->set_max_tokens(1 << 30); }},
        Damage{"layer ranges", [](v1::Load* l) { l->mutable_experts(); }},
        Damage{"neither", [](v1::Load* l) { l->clear_stage(); }}),
    [](const auto& param) {
      std::string name = param.param.name;
      std::erase(name, ' ');
      return name;
    });

}  // namespace
}  // namespace packtrain
