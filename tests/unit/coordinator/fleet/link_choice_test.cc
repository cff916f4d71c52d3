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
                                    const std::vector<LinkPin>& pins = {}) {
  const auto candidates = CandidateTransports(a, "a", b, "b", pins);
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
  const auto status =
      CandidateTransports(Peer("h1", "unix:/a"), "a", Peer("h2", "10.0.0.2:5"), "b", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST(CandidateTransportsTest, TheFirstMatchingPinDecidesInEitherDirection) {
  const auto here = Peer("h1", "unix:/a"), too = Peer("h1", "unix:/b");
  EXPECT_THAT(Candidates(here, too, {{"x", "*", "shm"}, {"b", "a", "grpc"}, {"*", "*", "shm"}}),
              ElementsAre("grpc"));
}

TEST(CandidateTransportsTest, APinThatCannotJoinThemIsRefused) {
  const auto status = CandidateTransports(Peer("h1", "10.0.0.1:5"), "a", Peer("h2", "10.0.0.2:5"),
                                          "b", {{"*", "*", "shm"}})
                          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
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
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100), "grpc");
}

TEST(FastestTransportTest, ATieIsDecidedByTheLargestSizeAndThenByTheOrder) {
  v1::HopMeasured measured;
  Add(&measured, "shm", 100, 50);
  Add(&measured, "shm", 100000, 900);
  Add(&measured, "grpc", 100, 51);
  Add(&measured, "grpc", 100000, 300);
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100), "grpc");
  measured.mutable_times(3)->set_one_way_us(890);
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, measured, 100), "shm");
}

TEST(FastestTransportTest, WithoutMeasurementsTheFirstIsTaken) {
  EXPECT_EQ(FastestTransport({"shm", "grpc"}, {}, 100), "shm");
}

}  // namespace
}  // namespace packtrain
