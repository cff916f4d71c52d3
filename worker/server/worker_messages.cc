#include "worker/server/worker_messages.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

constexpr int64_t kLayersMax = 4096;
constexpr int64_t kThreadsMax = 1024;
constexpr int64_t kRowsMax = 1 << 16;
constexpr int64_t kCountMax = 1 << 24;  // of pages and snapshots

absl::Status Check(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("load: %s %d is not in [%d, %d]", field, value, low, high));
}

absl::Status CheckRange(std::string_view field, const v1::LayerRange& range) {
  RETURN_IF_ERROR(Check(field, range.last(), 0, kLayersMax));
  return Check(field, range.first(), 0, range.last());
}

absl::StatusOr<StageSpec> DecodeStage(const v1::StageSpec& in, int threads) {
  RETURN_IF_ERROR(CheckRange("layers", in.layers()));
  RETURN_IF_ERROR(CheckRange("resident_experts", in.resident_experts()));
  RETURN_IF_ERROR(Check("kv_cache", in.kv_cache(), 0, static_cast<int64_t>(KvCacheType::kQ4_1)));
  RETURN_IF_ERROR(Check("num_pages", in.num_pages(), 1, kCountMax));
  RETURN_IF_ERROR(Check("num_slots", in.num_slots(), 1, kRowsMax));
  RETURN_IF_ERROR(Check("num_snapshots", in.num_snapshots(), 0, kCountMax));
  RETURN_IF_ERROR(Check("max_tokens", in.max_tokens(), 1, kRowsMax));
  RETURN_IF_ERROR(Check("streamed_rows", in.streamed_rows(), 0, kRowsMax));
  StageSpec spec;
  spec.first_layer = static_cast<int>(in.layers().first());
  spec.last_layer = static_cast<int>(in.layers().last());
  spec.embeds = in.embeds();
  spec.has_head = in.has_head();
  spec.kv_cache = static_cast<KvCacheType>(in.kv_cache());
  spec.num_pages = static_cast<int>(in.num_pages());
  spec.num_slots = static_cast<int>(in.num_slots());
  spec.num_snapshots = static_cast<int>(in.num_snapshots());
  spec.max_tokens = static_cast<int>(in.max_tokens());
  spec.streamed_rows = static_cast<int>(in.streamed_rows());
  spec.threads = threads;
  spec.resident_first = static_cast<int>(in.resident_experts().first());
  spec.resident_last = static_cast<int>(in.resident_experts().last());
  return spec;
}

}  // namespace

v1::PeerInfo ToProto(const PeerInfo& in) {
  v1::PeerInfo out;
  out.set_worker_id(in.worker_id);
  out.set_epoch(in.epoch);
  out.set_host_id(in.host_id);
  out.set_device(in.device);
  out.set_data_address(in.data_address);
  out.set_nccl(in.nccl);
  out.set_gpu(in.gpu);
  return out;
}

PeerInfo PeerFromProto(const v1::PeerInfo& in) {
  return {in.worker_id(),    in.epoch(), in.host_id(), in.device(),
          in.data_address(), in.nccl(),  in.gpu()};
}

std::vector<std::pair<int, int>> Ranges(
    const google::protobuf::RepeatedPtrField<v1::LayerRange>& in) {
  std::vector<std::pair<int, int>> out;
  for (const v1::LayerRange& r : in) {
    out.emplace_back(static_cast<int>(r.first()), static_cast<int>(r.last()));
  }
  return out;
}

absl::StatusOr<LoadRequest> DecodeLoad(const v1::Load& load) {
  constexpr uint32_t kSpinMaxUs = 1000;
  RETURN_IF_ERROR(Check("threads", load.threads(), 0, kThreadsMax));
  LoadRequest request;
  request.model_path = load.model_path();
  request.threads = static_cast<int>(load.threads());
  request.segment_fd = load.segment_fd();
  request.spin_us = static_cast<int>(std::min(load.spin_us(), kSpinMaxUs));
  if (load.has_turn_cpu()) {
    RETURN_IF_ERROR(Check("turn_cpu", load.turn_cpu(), 0, kThreadsMax));
    request.turn_cpu = static_cast<int>(load.turn_cpu());
  }
  for (const v1::Load::ExpertsSegment& segment : load.experts_segments()) {
    for (const v1::LayerRange& range : segment.layers()) {
      RETURN_IF_ERROR(CheckRange("layers of an experts segment", range));
    }
    request.experts_segments.push_back({segment.fd(), Ranges(segment.layers())});
  }
  if (load.has_stage()) {
    ASSIGN_OR_RETURN(request.stage, DecodeStage(load.stage(), request.threads));
  } else if (load.has_experts()) {
    RETURN_IF_ERROR(Check("number of layer ranges", load.experts().layers_size(), 1, kLayersMax));
    RETURN_IF_ERROR(Check("max_tokens", load.experts().max_tokens(), 1, kRowsMax));
    RETURN_IF_ERROR(Check("streamed_rows", load.experts().streamed_rows(), 0, kRowsMax));
    for (const v1::LayerRange& range : load.experts().layers()) {
      RETURN_IF_ERROR(CheckRange("layers", range));
    }
    request.experts = {Ranges(load.experts().layers()),
                       static_cast<int>(load.experts().max_tokens()),
                       static_cast<int>(load.experts().streamed_rows())};
  } else {
    return absl::InvalidArgumentError("load: neither stage nor experts");
  }
  return request;
}

}  // namespace packtrain
