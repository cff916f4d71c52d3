#include "worker/transport/shm/mailbox.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"

namespace packtrain {

// Fields that different sides write stand on different cache lines.
struct MailboxHeader {
  uint64_t magic;
  uint32_t max_tokens, hidden_dim, top_k_max;
  std::atomic<uint32_t> closed;

  alignas(64) std::atomic<uint64_t> request;  // written by the client after the request's data
  SharedEvent request_event;
  uint32_t layer, tokens, top_k;
  std::atomic<uint32_t> in_step;  // a device's: requests come without a call of request_event

  alignas(64) std::atomic<uint64_t> reply;  // the request's word, written after the reply's data
  SharedEvent reply_event;
  uint32_t code;
  char message[160];
  std::atomic<uint64_t> experts, requests;  // answered so far, as in ExpertsUse
};

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMagic = 0x31584f424c4d5450;
constexpr size_t kHeaderBytes = 4096;
// How often a server that sleeps looks for what a device has posted.
constexpr std::chrono::nanoseconds kLook = std::chrono::microseconds(50);
static_assert(sizeof(MailboxHeader) <= kHeaderBytes);

size_t Align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

// Where the arrays stand behind the header.
struct Layout {
  explicit Layout(const MailboxShape& shape) {
    const auto tokens = static_cast<size_t>(shape.max_tokens);
    const size_t row = tokens * static_cast<size_t>(shape.hidden_dim) * sizeof(float);
    const size_t picks = tokens * static_cast<size_t>(shape.top_k) * sizeof(float);
    x = kHeaderBytes;
    ids = x + Align(row);
    weights = ids + Align(picks);
    y = weights + Align(picks);
    bytes = y + Align(row);
  }
  size_t x, ids, weights, y, bytes;
};

template <typename T>
T* At(const SharedRegion& region, size_t offset) {
  return reinterpret_cast<T*>(region.data() + offset);
}

uint64_t SequenceWord(uint64_t epoch, uint64_t step, uint64_t layer, uint64_t piece) {
  return (epoch & 0xffff) << 48 | DeviceMailbox::StepBits(step) | (layer & 0xfff) << 12 |
         (piece & 0xfff);
}

absl::Status WorkerGone() { return absl::UnavailableError("the experts worker is gone"); }

absl::Status NoAnswer(int layer, std::chrono::milliseconds timeout) {
  return absl::DeadlineExceededError(absl::StrFormat(
      "the experts worker did not answer layer %d within %d ms", layer, timeout.count()));
}

// What a reply with a code says.
absl::Status ReplyStatus(const MailboxHeader& header, uint32_t code) {
  const size_t length = strnlen(header.message, sizeof header.message);
  return StatusFromWire(code, std::string(header.message, length));
}

ExpertsUse Use(const MailboxHeader& header) {
  return {header.experts.load(std::memory_order_relaxed),
          header.requests.load(std::memory_order_relaxed)};
}

}  // namespace

class MailboxClient::Device : public DeviceMailbox {
 public:
  Device(std::shared_ptr<SharedRegion> region, const MailboxShape& shape, const Options& options)
      : region_(std::move(region)), header_(At<MailboxHeader>(*region_, 0)), options_(options) {
    const packtrain::Layout arrays(shape);
    layout_ = {.memory = region_->data(),
               .bytes = region_->size(),
               .max_tokens = shape.max_tokens,
               .request = offsetof(MailboxHeader, request),
               .call = offsetof(MailboxHeader, layer),
               .reply = offsetof(MailboxHeader, reply),
               .code = offsetof(MailboxHeader, code),
               .closed = offsetof(MailboxHeader, closed),
               .x = arrays.x,
               .ids = arrays.ids,
               .weights = arrays.weights,
               .y = arrays.y};
  }

  const DeviceMailbox::Layout& layout() const override { return layout_; }
  uint64_t Word(int layer) const override {
    return SequenceWord(options_.epoch, 0, static_cast<uint64_t>(layer), 1);
  }
  std::chrono::nanoseconds timeout() const override { return options_.timeout; }

  void BeginStep() override {
    header_->in_step.store(1, std::memory_order_release);
    header_->request_event.Notify();
  }
  void EndStep(std::chrono::nanoseconds waited) override {
    waited_ = waited;
    header_->in_step.store(0, std::memory_order_release);
  }
  void CheckServer() override {
    if (!region_->PeerAlive()) header_->closed.store(1);
  }

  absl::Status TimedOut(int layer) const override { return NoAnswer(layer, options_.timeout); }
  absl::Status Gone() const override { return WorkerGone(); }
  absl::Status Refused(uint32_t code) const override { return ReplyStatus(*header_, code); }

  void ForgetWait() { waited_ = {}; }
  std::chrono::nanoseconds waited() const { return waited_; }

 private:
  const std::shared_ptr<SharedRegion> region_;
  MailboxHeader* const header_;
  const Options options_;
  DeviceMailbox::Layout layout_;
  std::chrono::nanoseconds waited_{0};
};

MailboxClient::MailboxClient(std::unique_ptr<SharedRegion> region, const MailboxShape& shape,
                             const Options& options)
    : region_(std::move(region)),
      header_(At<MailboxHeader>(*region_, 0)),
      device_(std::make_shared<Device>(region_, shape, options)),
      shape_(shape),
      options_(options),
      spin_(options.spin) {}

absl::StatusOr<std::unique_ptr<MailboxClient>> MailboxClient::Connect(const std::string& name,
                                                                      const MailboxShape& shape,
                                                                      const Options& options,
                                                                      Clock::time_point deadline) {
  ASSIGN_OR_RETURN(auto region,
                   ShareRegion(name, Layout(shape).bytes, deadline, [&shape](std::byte* data) {
                     auto* header = new (data) MailboxHeader{};
                     header->max_tokens = static_cast<uint32_t>(shape.max_tokens);
                     header->hidden_dim = static_cast<uint32_t>(shape.hidden_dim);
                     header->top_k_max = static_cast<uint32_t>(shape.top_k);
                     header->magic = kMagic;
                   }));
  return std::unique_ptr<MailboxClient>(new MailboxClient(std::move(region), shape, options));
}

MailboxClient::~MailboxClient() { Close(); }

void MailboxClient::BeginStep(uint64_t step_id) {
  step_ = step_id;
  piece_ = 0;
  device_->ForgetWait();
  used_before_ = Use(*header_);
}

std::shared_ptr<DeviceMailbox> MailboxClient::device_mailbox(int) { return device_; }

std::chrono::nanoseconds MailboxClient::waited() const { return device_->waited(); }

ExpertsUse MailboxClient::used() const {
  const ExpertsUse now = Use(*header_);
  return {now.experts - used_before_.experts, now.requests - used_before_.requests};
}

absl::Status MailboxClient::Post(const ExpertsRequest& request) {
  if (request.tokens < 1 || request.tokens > shape_.max_tokens || request.top_k < 1 ||
      request.top_k > shape_.top_k || request.hidden_dim != shape_.hidden_dim) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "experts request of %d tokens, top_k %d, hidden_dim %d; the mailbox holds %d, %d, %d",
        request.tokens, request.top_k, request.hidden_dim, shape_.max_tokens, shape_.top_k,
        shape_.hidden_dim));
  }
  const Layout layout(shape_);
  const auto tokens = static_cast<size_t>(request.tokens);
  const size_t picks = tokens * static_cast<size_t>(request.top_k);
  reply_values_ = tokens * static_cast<size_t>(request.hidden_dim);
  std::memcpy(region_->data() + layout.x, request.x, reply_values_ * sizeof(float));
  std::memcpy(region_->data() + layout.ids, request.ids, picks * sizeof(int32_t));
  std::memcpy(region_->data() + layout.weights, request.weights, picks * sizeof(float));
  header_->layer = static_cast<uint32_t>(request.layer);
  header_->tokens = static_cast<uint32_t>(request.tokens);
  header_->top_k = static_cast<uint32_t>(request.top_k);
  sequence_ = SequenceWord(options_.epoch, step_, static_cast<uint64_t>(request.layer), ++piece_);
  header_->request.store(sequence_, std::memory_order_release);
  header_->request_event.Notify();
  deadline_ = Clock::now() + options_.timeout;
  return absl::OkStatus();
}

absl::Status MailboxClient::Await(float* y) {
  const auto answered = [this] {
    return header_->reply.load(std::memory_order_acquire) == sequence_;
  };
  const auto ready = [&] {
    return answered() || header_->closed.load(std::memory_order_relaxed) != 0;
  };
  const auto alive = [this] { return region_->PeerAlive(); };
  WaitShared(&header_->reply_event, &spin_, deadline_, ready, alive);
  if (!answered()) {
    if (header_->closed.load() != 0 || !alive()) return WorkerGone();
    return NoAnswer(static_cast<int>(header_->layer), options_.timeout);
  }
  if (header_->code != 0) return ReplyStatus(*header_, header_->code);
  std::memcpy(y, region_->data() + Layout(shape_).y, reply_values_ * sizeof(float));
  return absl::OkStatus();
}

void MailboxClient::Close() {
  header_->closed.store(1);
  header_->request_event.Notify();
  header_->reply_event.Notify();
}

class MailboxServer::Impl {
 public:
  Impl(std::unique_ptr<RegionListener> listener, const MailboxShape& shape,
       std::chrono::nanoseconds spin)
      : listener_(std::move(listener)), shape_(shape), spin_(spin) {}

  absl::Status Serve(ExpertsBackend* backend) {
    RETURN_IF_ERROR(Accept());
    prctl(PR_SET_TIMERSLACK, 1UL);  // of this thread: short sleeps stay short
    const absl::Status status = AnswerAll(backend);
    header_->closed.store(1);
    header_->reply_event.Notify();
    return status;
  }

  void Close() { stop_ = true; }

 private:
  bool closed() const { return stop_ || header_->closed.load(std::memory_order_relaxed) != 0; }
  bool in_step() const { return header_->in_step.load(std::memory_order_acquire) != 0; }

  absl::Status AnswerAll(ExpertsBackend* backend) {
    uint64_t served = 0;
    while (true) {
      const bool began = in_step();
      const auto ready = [&] {
        return header_->request.load(std::memory_order_acquire) != served || closed() ||
               in_step() != began;
      };
      const bool called = WaitShared(
          &header_->request_event, WaitsForStep(began) ? &asleep_ : &spin_,
          Clock::time_point::max(), ready, [this] { return region_->PeerAlive(); },
          [this] { return in_step() ? kLook : kSharedSlice; });
      if (stop_) return absl::CancelledError("the server was closed");
      if (!called || closed()) return absl::UnavailableError("the stage is gone");
      const uint64_t request = header_->request.load(std::memory_order_acquire);
      if (request == served) continue;
      served = request;
      RETURN_IF_ERROR(Answer(served, backend));
    }
  }

  // A device's next step wakes us: spinning would not be for a request.
  bool WaitsForStep(bool in_step) {
    serves_device_ = serves_device_ || in_step;
    return serves_device_ && !in_step;
  }

  absl::Status Accept() {
    constexpr std::chrono::milliseconds kSlice(20);
    const size_t bytes = Layout(shape_).bytes;
    while (region_ == nullptr) {
      if (stop_) return absl::CancelledError("the server was closed");
      auto region = listener_->Accept(bytes, Clock::now() + kSlice);
      if (absl::IsDeadlineExceeded(region.status())) continue;
      ASSIGN_OR_RETURN(region_, std::move(region));
    }
    listener_ = nullptr;
    header_ = At<MailboxHeader>(*region_, 0);
    if (region_->size() != bytes || header_->magic != kMagic ||
        header_->max_tokens != static_cast<uint32_t>(shape_.max_tokens) ||
        header_->hidden_dim != static_cast<uint32_t>(shape_.hidden_dim) ||
        header_->top_k_max != static_cast<uint32_t>(shape_.top_k)) {
      return absl::DataLossError(absl::StrFormat(
          "experts mailbox of %d bytes has another shape than max_tokens %d, hidden_dim %d, "
          "top_k %d",
          region_->size(), shape_.max_tokens, shape_.hidden_dim, shape_.top_k));
    }
    return absl::OkStatus();
  }

  absl::Status Answer(uint64_t sequence, ExpertsBackend* backend) {
    const Layout layout(shape_);
    ExpertsRequest request;
    const uint32_t layer = header_->layer, tokens = header_->tokens, top_k = header_->top_k;
    if (tokens < 1 || tokens > static_cast<uint32_t>(shape_.max_tokens) || top_k < 1 ||
        top_k > static_cast<uint32_t>(shape_.top_k) || layer > 0xffff) {
      return absl::DataLossError(
          absl::StrFormat("experts request of %d tokens, top_k %d; the mailbox holds %d, %d",
                          tokens, top_k, shape_.max_tokens, shape_.top_k));
    }
    request.layer = static_cast<int>(layer);
    request.tokens = static_cast<int>(tokens);
    request.top_k = static_cast<int>(top_k);
    request.hidden_dim = shape_.hidden_dim;
    const size_t picks = size_t{tokens} * top_k;
    const auto* ids = At<const int32_t>(*region_, layout.ids);
    ids_.assign(ids, ids + picks);
    request.ids = ids_.data();
    request.x = At<const float>(*region_, layout.x);
    request.weights = At<const float>(*region_, layout.weights);
    const absl::Status status = backend->Compute(request, At<float>(*region_, layout.y));
    header_->code = WireCode(status);
    const size_t length = status.message().copy(header_->message, sizeof header_->message - 1);
    header_->message[length] = '\0';
    header_->experts.fetch_add(CountDistinctExperts(&ids_), std::memory_order_relaxed);
    header_->requests.fetch_add(1, std::memory_order_relaxed);
    header_->reply.store(sequence, std::memory_order_release);
    header_->reply_event.Notify();
    return absl::OkStatus();
  }

  std::unique_ptr<RegionListener> listener_;
  const MailboxShape shape_;
  SpinPredictor spin_;
  SpinPredictor asleep_{std::chrono::nanoseconds(0)};
  bool serves_device_ = false;
  std::unique_ptr<SharedRegion> region_;
  MailboxHeader* header_ = nullptr;
  std::vector<int32_t> ids_;
  std::atomic<bool> stop_{false};
};

MailboxServer::MailboxServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MailboxServer::~MailboxServer() = default;

absl::StatusOr<std::unique_ptr<MailboxServer>> MailboxServer::Listen(
    const std::string& name, const MailboxShape& shape, std::chrono::nanoseconds spin) {
  CHECK(shape.max_tokens > 0 && shape.hidden_dim > 0 && shape.top_k > 0);
  ASSIGN_OR_RETURN(auto listener, RegionListener::Listen(name));
  return std::unique_ptr<MailboxServer>(
      new MailboxServer(std::make_unique<Impl>(std::move(listener), shape, spin)));
}

absl::Status MailboxServer::Serve(ExpertsBackend* backend) { return impl_->Serve(backend); }
void MailboxServer::Close() { impl_->Close(); }

}  // namespace packtrain
