// Which transports can join two workers, and which of them is taken.

#include "coordinator/fleet/link_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/control.pb.h"

namespace packtrain {
namespace {

using testing::ElementsAre;

v1::PeerInfo Peer(const std::string& host, const std::string& address) {
  v1::PeerInfo peer;
  peer.set_host_id(host);
  peer.set_data_address(address);
  return peer;
}

std::vector<std::string> Candidates(const v1::PeerInfo& a, const v1::PeerInfo& b,
                                    const std::vector<LinkPin>& pins = {},
                                    LinkUse use = LinkUse::kActivations) {
  const auto candidates = CandidateTransports(a, "a", b, "b", pins, use);
  EXPECT_TRUE(candidates.ok()) << candidates.status();
  return candidates.value_or(std::vector<std::string>{});
}

TEST(CandidateTransportsTest, SharedMemoryOnlyJoinsWorkersOfOneHost) {
  const auto here = Peer("h1", "unix:/a"), too = Peer("h1", "unix:/b");
  EXPECT_THAT(Candidates(here, too), ElementsAre("shm", "grpc"));
  EXPECT_THAT(Candidates(Peer("h1", "10.0.0.1:5"), Peer("h2", "10.0.0.2:5")), ElementsAre("grpc"));
}

TEST(CandidateTransportsTest, UnknownHostsAreNeverTakenForOne) {
  EXPECT_THAT(Candidates(Peer("", "10.0.0.1:5"), Peer("", "10.0.0.2:5")), ElementsAre("grpc"));
}

TEST(CandidateTransportsTest, TwoHostsNeedAddressesThatTheOtherCanReach) {
  const auto status = CandidateTransports(Peer("h1", "unix:/a"), "a", Peer("h2", "10.0.0.2:5"), "b",
                                          {}, LinkUse::kActivations)
                          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST(CandidateTransportsTest, TheFirstMatchingPinDecidesInEitherDirection) {
  const auto here = Peer("h1", "unix:/a"), too = Peer("h1", "unix:/b");
  EXPECT_THAT(Candidates(here, too, {{"x", "*", "shm"}, {"b", "a", "grpc"}, {"*", "*", "shm"}}),
              ElementsAre("grpc"));
}

TEST(CandidateTransportsTest, APinThatCannotJoinThemIsRefused) {
  const auto status = CandidateTransports(Peer("h1", "10.0.0.1:5"), "a", Peer("h2", "10.0.0.2:5"),
                                          "b", {{"*", "*", "shm"}}, LinkUse::kActivations)
                          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

v1::PeerInfo Gpu(v1::PeerInfo peer, const std::string& nccl, const std::string& gpu) {
  peer.set_nccl(nccl);
  peer.set_gpu(gpu);
  return peer;
}

TEST(CandidateTransportsTest, NcclJoinsTwoGpusThatHaveTheSameVersion) {
  const auto here = Peer("h1", "unix:/a"), there = Peer("h2", "10.0.0.2:5");
  const auto a = Gpu(here, "2.28.9", "h1/1");
  EXPECT_THAT(Candidates(a, Gpu(here, "2.28.9", "h1/2")), ElementsAre("nccl", "shm", "grpc"));
  EXPECT_THAT(Candidates(a, Gpu(here, "2.28.9", "h1/1")), ElementsAre("shm", "grpc"));
  EXPECT_THAT(Candidates(a, Gpu(here, "2.20.3", "h1/2")), ElementsAre("shm", "grpc"));
  EXPECT_THAT(Candidates(a, here), ElementsAre("shm", "grpc"));
  EXPECT_THAT(
      Candidates(Gpu(Peer("h1", "10.0.0.1:5"), "2.28.9", "h1/1"), Gpu(there, "2.28.9", "h2/1")),
      ElementsAre("nccl", "grpc"));
}

TEST(CandidateTransportsTest, WhatLiesInHostMemoryIsNotForNcclAlsoIfPinned) {
  const auto here = Peer("h1", "unix:/a");
  const auto a = Gpu(here, "2.28.9", "h1/1"), b = Gpu(here, "2.28.9", "h1/2");
  EXPECT_THAT(Candidates(a, b, {{"a", "b", "nccl"}}), ElementsAre("nccl"));
  EXPECT_THAT(Candidates(a, b, {{"a", "b", "nccl"}}, LinkUse::kHost), ElementsAre("shm", "grpc"));
}

void Add(v1::HopMeasured* measured, const std::string& transport, uint64_t bytes, double us) {
  v1::HopMeasured::Time* time = measured->add_times();
  time->set_transport(transport);
  time->set_payload_bytes(bytes);
  time->set_one_way_us(us);
}

TEST(FastestTransportTest, TheTimeOfOneTokenDecides) {
  v1::HopMeasured measured;
  Add(&measured, "shm", 100, 50);
  Add(&measured, "shm", 100000, 100);
  Add(&measured, "grpc", 100, 40);
  Add(&measured, "grpc", 100000, 900);
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100).transport, "grpc");
}

TEST(FastestTransportTest, ATieIsDecidedByTheLargestSizeAndThenByTheOrder) {
  v1::HopMeasured measured;
  Add(&measured, "shm", 100, 50);
  Add(&measured, "shm", 100000, 900);
  Add(&measured, "grpc", 100, 51);
  Add(&measured, "grpc", 100000, 300);
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100).transport, "grpc");
  measured.mutable_times(3)->set_one_way_us(890);
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100).transport, "shm");
}

TEST(FastestTransportTest, NcclTakesWhatIsLargeEnough) {
  v1::HopMeasured measured;
  Add(&measured, "nccl", 100, 90);
  Add(&measured, "nccl", 100100, 190);
  Add(&measured, "shm", 100, 40);
  Add(&measured, "shm", 100100, 1040);
  // 90 + x / 1000 and 40 + x / 100, x beyond 100 bytes, meet at x = 50 000 / 9.
  const LinkChoice both = FastestTransport({"nccl", "shm"}, measured, 100);
  EXPECT_EQ(both.transport, "nccl");
  EXPECT_NEAR(static_cast<double>(both.direct_from_bytes), 100 + 50000 / 9.0, 2);
  measured.mutable_times(1)->set_one_way_us(1030);  // never faster
  EXPECT_EQ(FastestTransport({"nccl", "shm"}, measured, 100).transport, "shm");
  measured.mutable_times(0)->set_one_way_us(41);  // as fast as the other
  measured.mutable_times(1)->set_one_way_us(190);
  EXPECT_EQ(FastestTransport({"nccl", "shm"}, measured, 100).transport, "nccl");
  EXPECT_EQ(FastestTransport({"nccl", "shm"}, measured, 100).direct_from_bytes, 0U);
}

TEST(FastestTransportTest, WhatNcclLeavesGoesByTheNextCandidate) {
  v1::HopMeasured measured;
  Add(&measured, "nccl", 100, 90);
  Add(&measured, "nccl", 100100, 190);
  Add(&measured, "shm", 100, 41);
  Add(&measured, "shm", 100100, 1041);
  Add(&measured, "grpc", 100, 40);
  Add(&measured, "grpc", 100100, 640);
  const std::vector<std::string> all = {"nccl", "shm", "grpc"};
  // shm is not slower than grpc for a token: its line is the one that nccl's crosses.
  const LinkChoice both = FastestTransport(all, measured, 100);
  EXPECT_EQ(both.transport, "nccl");
  EXPECT_NEAR(static_cast<double>(both.direct_from_bytes), 100 + 49000 / 9.0, 2);
  // Now it is, and nccl would bring it along.
  measured.mutable_times(2)->set_one_way_us(60);
  EXPECT_EQ(FastestTransport(all, measured, 100).ToString(), "grpc");
}

TEST(FastestTransportTest, WithoutMeasurementsTheFirstIsTaken) {
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, {}, 100).transport, "shm");
}

}  // namespace
}  // namespace packtrain
