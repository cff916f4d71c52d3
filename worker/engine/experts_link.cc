#include "worker/engine/experts_link.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

// Tensors of a request: "call" i32 [1, 2] (serial, layer), "x", "ids", "weights"; of a reply:
// "call" and "y".
enum RequestTensor : size_t { kCall, kX, kIds, kWeights };

// Idle stages do not ask for long; the wait is cut only so that it has an end.
constexpr std::chrono::hours kIdle(1);

absl::StatusOr<ExpertsRequest> ReadRequest(const Bundle& bundle) {
  const BundleTensor* call = bundle.Find("call");
  const BundleTensor* x = bundle.Find("x");
  const BundleTensor* ids = bundle.Find("ids");
  const BundleTensor* weights = bundle.Find("weights");
  const bool complete = call != nullptr && x != nullptr && ids != nullptr && weights != nullptr;
  if (!complete || call->type != ElementType::kI32 || call->rows != 1 || call->cols != 2 ||
      x->type != ElementType::kF32 || ids->type != ElementType::kI32 ||
      weights->type != ElementType::kF32 || x->rows < 1 || x->cols < 1 || ids->cols < 1 ||
      ids->rows != x->rows || weights->rows != x->rows || weights->cols != ids->cols ||
      call->i32()[1] < 0) {
    return absl::DataLossError("experts request of another shape");
  }
  ExpertsRequest request;
  request.layer = call->i32()[1];
  request.tokens = static_cast<int>(x->rows);
  request.hidden_dim = static_cast<int>(x->cols);
  request.top_k = static_cast<int>(ids->cols);
  request.x = x->f32();
  request.ids = ids->i32();
  request.weights = weights->f32();
  return request;
}

}  // namespace

size_t ExpertsRequestBytes(int max_tokens, int hidden_dim, int top_k) {
  return 8 + size_t{4} * static_cast<size_t>(max_tokens) *
                 (static_cast<size_t>(hidden_dim) + 2 * static_cast<size_t>(top_k));
}

size_t ExpertsReplyBytes(int max_tokens, int hidden_dim) {
  return 8 + size_t{4} * static_cast<size_t>(max_tokens) * static_cast<size_t>(hidden_dim);
}

LinkExpertsClient::LinkExpertsClient(std::unique_ptr<SendLink> requests,
                                     std::unique_ptr<ReceiveLink> replies, uint64_t epoch,
                                     std::chrono::milliseconds timeout)
    : requests_(std::move(requests)),
      replies_(std::move(replies)),
      epoch_(epoch),
      timeout_(timeout) {}

void LinkExpertsClient::BeginStep(uint64_t step_id) {
  step_ = step_id;
  used_ = {};
}

absl::Status LinkExpertsClient::Post(const ExpertsRequest& r) {
  deadline_ = Clock::now() + timeout_;
  tokens_ = r.tokens;
  hidden_dim_ = r.hidden_dim;
  const auto rows = static_cast<uint32_t>(r.tokens);
  const auto top_k = static_cast<uint32_t>(r.top_k);
  request_.epoch = epoch_;
  request_.step_id = step_;
  BundleTensor* call = request_.Shape(kCall, "call", ElementType::kI32, 1, 2);
  call->i32()[0] = ++serial_;
  call->i32()[1] = r.layer;
  BundleTensor* x =
      request_.Shape(kX, "x", ElementType::kF32, rows, static_cast<uint32_t>(r.hidden_dim));
  std::memcpy(x->data.data(), r.x, x->bytes());
  BundleTensor* ids = request_.Shape(kIds, "ids", ElementType::kI32, rows, top_k);
  std::memcpy(ids->data.data(), r.ids, ids->bytes());
  BundleTensor* weights = request_.Shape(kWeights, "weights", ElementType::kF32, rows, top_k);
  std::memcpy(weights->data.data(), r.weights, weights->bytes());
  ids_.assign(r.ids, r.ids + static_cast<size_t>(r.tokens) * static_cast<size_t>(r.top_k));
  used_.experts += CountDistinctExperts(&ids_);
  ++used_.requests;
  return requests_->Send(request_, deadline_);
}

absl::Status LinkExpertsClient::Await(float* y) {
  while (true) {
    RETURN_IF_ERROR(replies_->Receive(&reply_, deadline_));
    const BundleTensor* call = reply_.Find("call");
    if (call == nullptr || call->type != ElementType::kI32 || call->rows != 1 || call->cols != 1) {
      return absl::DataLossError("experts reply of another shape");
    }
    if (call->i32()[0] == serial_) break;
  }
  if (!reply_.error.ok()) return reply_.error;
  const BundleTensor* t = reply_.Find("y");
  if (t == nullptr || t->type != ElementType::kF32 || t->rows != static_cast<uint32_t>(tokens_) ||
      t->cols != static_cast<uint32_t>(hidden_dim_)) {
    return absl::DataLossError("experts reply of another shape");
  }
  std::memcpy(y, t->data.data(), t->bytes());
  return absl::OkStatus();
}

void LinkExpertsClient::Close() {
  requests_->Close();
  replies_->Close();
}

absl::Status ServeExperts(ReceiveLink* requests, SendLink* replies,
                          std::chrono::milliseconds timeout, ExpertsBackend* backend) {
  Bundle in, out;
  while (true) {
    const absl::Status received = requests->Receive(&in, Clock::now() + kIdle);
    if (absl::IsDeadlineExceeded(received)) continue;
    RETURN_IF_ERROR(received);
    ASSIGN_OR_RETURN(const ExpertsRequest request, ReadRequest(in));
    out.epoch = in.epoch;
    out.step_id = in.step_id;
    out.Shape(0, "call", ElementType::kI32, 1, 1)->i32()[0] = in.Find("call")->i32()[0];
    BundleTensor* y = out.Shape(1, "y", ElementType::kF32, static_cast<uint32_t>(request.tokens),
                                static_cast<uint32_t>(request.hidden_dim));
    out.error = backend->Compute(request, y->f32());
    RETURN_IF_ERROR(replies->Send(out, Clock::now() + timeout));
  }
}

}  // namespace packtrain
