#include "worker/device/cuda/remote_experts.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "worker/device/cuda/cuda_run.h"
#include "worker/device/cuda/expert_stream.h"

namespace packtrain {
namespace {

using Clock = std::chrono::steady_clock;

size_t Product(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

template <typename T>
T* At(std::byte* base, size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

cuda::Mailbox Addresses(std::byte* base, const DeviceMailbox::Layout& layout) {
  return {.request = At<uint64_t>(base, layout.request),
          .call = At<uint32_t>(base, layout.call),
          .reply = At<uint64_t>(base, layout.reply),
          .code = At<uint32_t>(base, layout.code),
          .closed = At<uint32_t>(base, layout.closed),
          .x = At<float>(base, layout.x),
          .ids = At<int32_t>(base, layout.ids),
          .weights = At<float>(base, layout.weights),
          .y = At<float>(base, layout.y)};
}

cuda::MailboxReport* Report(const PinnedMemory& memory) {
  return reinterpret_cast<cuda::MailboxReport*>(memory.data());
}

}  // namespace

RemoteExperts::RemoteExperts(ExpertsClient* client, const ModelConfig& config, int max_tokens)
    : client_(client), config_(config), max_tokens_(max_tokens) {}

RemoteExperts::~RemoteExperts() { Release(); }

void RemoteExperts::Release() {
  for (const Registered& r : registered_) cudaHostUnregister(r.mailbox->layout().memory);
  registered_.clear();
  for (auto& [layer, mailbox] : layers_) mailbox = nullptr;
  num_mailbox_layers_ = 0;
}

absl::StatusOr<bool> RemoteExperts::Follow() {
  const bool same = std::all_of(layers_.begin(), layers_.end(), [this](const auto& layer) {
    const std::shared_ptr<DeviceMailbox> now = client_->device_mailbox(layer.first);
    return now == layer.second && (now != nullptr || host_ != nullptr);
  });
  if (same) return false;
  Release();
  for (auto& [layer, mailbox] : layers_) {
    std::shared_ptr<DeviceMailbox> now = client_->device_mailbox(layer);
    RETURN_IF_ERROR(now == nullptr ? AllocateHost() : Register(now));
    num_mailbox_layers_ += now != nullptr ? 1 : 0;
    mailbox = std::move(now);
  }
  return true;
}

absl::Status RemoteExperts::Register(const std::shared_ptr<DeviceMailbox>& mailbox) {
  const auto known = [&](const Registered& r) { return r.mailbox == mailbox; };
  if (std::any_of(registered_.begin(), registered_.end(), known)) return absl::OkStatus();
  if (report_ == nullptr) {
    ASSIGN_OR_RETURN(report_, PinnedMemory::Allocate(sizeof(cuda::MailboxReport)));
  }
  const DeviceMailbox::Layout& layout = mailbox->layout();
  CHECK(layout.max_tokens >= max_tokens_);
  RETURN_IF_CUDA(cudaHostRegister(layout.memory, layout.bytes,
                                  cudaHostRegisterMapped | cudaHostRegisterPortable));
  void* base = nullptr;
  const int code = cudaHostGetDevicePointer(&base, layout.memory, 0);
  registered_.push_back({mailbox, Addresses(static_cast<std::byte*>(base), layout)});
  return CudaStatus(code, "cudaHostGetDevicePointer");
}

absl::Status RemoteExperts::AllocateHost() {
  if (host_ != nullptr) return absl::OkStatus();
  const size_t row = Product(max_tokens_, config_.hidden_dim) * sizeof(float);
  const size_t picks = Product(max_tokens_, config_.moe.top_k) * sizeof(float);
  ASSIGN_OR_RETURN(host_, PinnedMemory::Allocate(2 * (row + picks)));
  host_x_ = At<float>(host_->data(), 0);
  host_y_ = At<float>(host_->data(), row);
  host_ids_ = At<int32_t>(host_->data(), 2 * row);
  host_weights_ = At<float>(host_->data(), 2 * row + picks);
  return absl::OkStatus();
}

const RemoteExperts::Registered* RemoteExperts::Find(int layer) const {
  const auto it = layers_.find(layer);
  if (it == layers_.end() || it->second == nullptr) return nullptr;
  return &*std::find_if(registered_.begin(), registered_.end(),
                        [&](const Registered& r) { return r.mailbox == it->second; });
}

cuda::MailboxStep RemoteExperts::BeginStep(const CudaRun& run, uint64_t step_id) {
  enqueued_ = 0;
  if (report_ != nullptr) *Report(*report_) = {};
  for (Registered& r : registered_) {
    r.in_step = std::any_of(layers_.begin(), layers_.end(), [&](const auto& layer) {
      const bool streamed = run.streaming && run.expert_stream->Find(layer.first) != nullptr;
      return layer.second == r.mailbox && !streamed;
    });
    if (r.in_step) r.mailbox->BeginStep();
  }
  return {.bits = DeviceMailbox::StepBits(step_id)};
}

void RemoteExperts::Enqueue(CudaRun* run, int layer, const DevicePicks& picks,
                            const DeviceActivations& x, const std::function<SharedExpert()>& shared,
                            float* y) {
  if (const Registered* at = Find(layer); at != nullptr) {
    EnqueueOnDevice(run, *at, layer, picks, x, shared, y);
  } else {
    EnqueueOnHost(run, layer, picks, x, shared, y);
  }
}

void RemoteExperts::EnqueueOnDevice(CudaRun* run, const Registered& at, int layer,
                                    const DevicePicks& picks, const DeviceActivations& x,
                                    const std::function<SharedExpert()>& shared, float* y) {
  const auto timeout = static_cast<uint64_t>(at.mailbox->timeout().count());
  const cuda::MailboxRequest request = {.mailbox = at.addresses,
                                        .step = run->batch.mailbox_step,
                                        .report = Report(*report_),
                                        .word = at.mailbox->Word(layer),
                                        .layer = layer,
                                        .rows = run->rows,
                                        .top_k = config_.moe.top_k,
                                        .n = x.n,
                                        .x = x.f32,
                                        .ids = picks.ids,
                                        .weights = picks.weights,
                                        .timeout_ns = timeout};
  LAUNCH(run, cuda::PostExperts(request, run->stream));
  run->BeginBranch();
  const SharedExpert beside = shared();
  run->EndBranch();
  LAUNCH(run, cuda::AwaitExperts(request, run->stream));
  if (run->recording == nullptr) {
    // Launches that fill the device's queue would wait for the reply here, and see no server die.
    ++enqueued_;
    run->status.Update(Synchronize(run->stream));
  }
  run->JoinBranch();
  LAUNCH(run, cuda::TakeExperts(request, beside.y, beside.logit, y, run->stream));
}

void RemoteExperts::EnqueueOnHost(CudaRun* run, int layer, const DevicePicks& picks,
                                  const DeviceActivations& x,
                                  const std::function<SharedExpert()>& shared, float* y) {
  const size_t picked = Product(run->rows, config_.moe.top_k) * sizeof(float);
  const size_t row_bytes = Product(run->rows, x.n) * sizeof(float);
  LAUNCH(run, cudaMemcpyAsync(host_x_, x.f32, row_bytes, cudaMemcpyDeviceToHost, run->stream));
  LAUNCH(run, cudaMemcpyAsync(host_ids_, picks.ids, picked, cudaMemcpyDeviceToHost, run->stream));
  LAUNCH(run, cudaMemcpyAsync(host_weights_, picks.weights, picked, cudaMemcpyDeviceToHost,
                              run->stream));
  run->OnHost([this, run, layer]() -> absl::Status {
    RETURN_IF_ERROR(Synchronize(run->stream));
    return client_->Post({.layer = layer,
                          .tokens = run->rows,
                          .hidden_dim = config_.hidden_dim,
                          .top_k = config_.moe.top_k,
                          .x = host_x_,
                          .ids = host_ids_,
                          .weights = host_weights_});
  });
  const SharedExpert beside = shared();
  run->OnHost([this] { return client_->Await(host_y_); });
  if (!run->status.ok()) return;
  LAUNCH(run, cudaMemcpyAsync(y, host_y_, row_bytes, cudaMemcpyHostToDevice, run->stream));
  if (beside.y == nullptr) return;
  LAUNCH(run, cuda::AddScaled(y, beside.y, beside.logit, run->rows, x.n, run->stream));
}

uint32_t RemoteExperts::Awaited() const {
  return std::atomic_ref(Report(*report_)->awaited).load(std::memory_order_acquire);
}

absl::Status RemoteExperts::Synchronize(cuda::Stream stream) {
  // CPU experts take milliseconds a step and want every core meanwhile.
  constexpr std::chrono::microseconds kNap(100);
  constexpr std::chrono::milliseconds kCheck(10);
  Clock::time_point check = Clock::now() + kCheck;
  while (enqueued_ > 0 && Awaited() < enqueued_) {
    std::this_thread::sleep_for(kNap);
    if (Clock::now() < check) continue;
    check = Clock::now() + kCheck;
    for (const Registered& r : registered_) r.mailbox->CheckServer();
    // A lost device gets nowhere.
    if (cudaStreamQuery(stream) != cudaErrorNotReady) break;
  }
  RETURN_IF_CUDA(cudaStreamSynchronize(stream));
  return absl::OkStatus();
}

absl::Status RemoteExperts::EndStep() {
  if (registered_.empty()) return absl::OkStatus();
  const cuda::MailboxReport report = *Report(*report_);
  auto waited = std::chrono::nanoseconds(report.waited_ns);
  for (Registered& r : registered_) {
    if (!std::exchange(r.in_step, false)) continue;
    r.mailbox->EndStep(std::exchange(waited, {}));
  }
  if (report.failure == cuda::MailboxFailure::kNone) return absl::OkStatus();
  const int layer = static_cast<int>(report.layer);
  const DeviceMailbox& mailbox = *layers_.at(layer);
  switch (report.failure) {
    case cuda::MailboxFailure::kTimedOut:
      return mailbox.TimedOut(layer);
    case cuda::MailboxFailure::kRefused:
      return mailbox.Refused(report.code);
    default:
      return mailbox.Gone();
  }
}

}  // namespace packtrain
