#pragma once

// Messages of proto/control.proto as the worker's own values. What they ask for is checked here.

#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/control.pb.h"
#include "worker/server/model_loader.h"
#include "worker/transport/transport.h"

namespace packtrain {

v1::PeerInfo ToProto(const PeerInfo& in);
PeerInfo PeerFromProto(const v1::PeerInfo& in);

std::vector<std::pair<int, int>> Ranges(
    const google::protobuf::RepeatedPtrField<v1::LayerRange>& in);

// Errors: INVALID_ARGUMENT naming the field, its value and what is allowed.
absl::StatusOr<LoadRequest> DecodeLoad(const v1::Load& load);

}  // namespace packtrain
