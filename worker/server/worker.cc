#include "worker/server/worker.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/host_limits.h"
#include "common/base/status_macros.h"
#include "common/rpc/protocol_version.h"
#include "common/rpc/status.h"
#include "common/rpc/step_codec.h"
#include "proto/control.pb.h"
#include "worker/engine/experts_link.h"
#include "worker/engine/experts_router.h"
#include "worker/server/experts_servers.h"
#include "worker/server/hop_meter.h"
#include "worker/server/worker_messages.h"
#include "worker/transport/grpc/grpc_transport.h"
#include "worker/transport/shm/mailbox.h"
#include "worker/transport/shm/shm_transport.h"

namespace packtrain {
namespace {

constexpr size_t kTokensBytesMax = 64 << 10;

// Equal for processes that share memory and abstract sockets: one kernel, one network namespace.
std::string HostId() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  char network[64] = {};
  const ssize_t length = readlink("/proc/self/ns/net", network, sizeof network - 1);
  return boot_id + "/" + (length > 0 ? network : "");
}

// RAM that this process alone holds: without files and segments.
uint64_t PrivateBytes() {
  uint64_t pages = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident >> shared;
  return (resident - std::min(shared, resident)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

class Worker::Impl {
 public:
  Impl(WorkerOptions options, ModelLoader loader, TensorService* service, Sender send)
      : options_(std::move(options)),
        loader_(std::move(loader)),
        service_(service),
        send_(std::move(send)) {
    transports_["grpc"] = MakeGrpcTransport(service_, options_.tls);
  }
  ~Impl() {
    stopping_ = true;
    if (request_thread_.joinable()) request_thread_.join();
    Disconnect();
  }

  absl::Status Handle(const v1::CoordinatorMessage& message) {
    using Kind = v1::CoordinatorMessage::MessageCase;
    if (self_.worker_id.empty() != (message.message_case() == Kind::kJoin)) {
      return absl::InvalidArgumentError("the first message, and only it, must be Join");
    }
    switch (message.message_case()) {
      case Kind::kJoin:
        return Join(message.join());
      case Kind::kSteps:
        return SubmitSteps(message.steps());
      case Kind::kCancel:
        if (!busy_ && engine_ != nullptr) engine_->Cancel(message.cancel().through_step());
        return absl::OkStatus();
      case Kind::kShutdown:
        return absl::CancelledError("shut down by the coordinator");
      case Kind::kLoad:
      case Kind::kMeasureHop:
      case Kind::kConnect:
      case Kind::kDrain:
        return Begin(message);
      case Kind::MESSAGE_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError("unknown message");
  }

 private:
  // Runs a request in a thread of its own, so that the stream is heard meanwhile. What it changes
  // is touched by no other message until it has been answered.
  absl::Status Begin(const v1::CoordinatorMessage& message) {
    if (busy_) {
      return absl::InvalidArgumentError("a request came before the last one was answered");
    }
    if (request_thread_.joinable()) request_thread_.join();
    busy_ = true;
    request_thread_ = std::thread([this, message] {
      absl::StatusOr<v1::WorkerMessage> answer = absl::InternalError("no answer");
      try {
        answer = Run(message);
      } catch (const std::exception& e) {  // no memory for what was asked
        answer = absl::ResourceExhaustedError(e.what());
      }
      if (!answer.ok()) answer = FailedMessage(message, answer.status());
      busy_ = false;
      send_(*answer);
    });
    return absl::OkStatus();
  }

  absl::StatusOr<v1::WorkerMessage> Run(const v1::CoordinatorMessage& message) {
    if (message.has_load()) return Load(message.load());
    if (message.has_measure_hop()) return Measure(message.measure_hop());
    if (message.has_connect()) return Connect(message.connect());
    return Drain();
  }

  v1::WorkerMessage FailedMessage(const v1::CoordinatorMessage& request,
                                  const absl::Status& status) const {
    const char* name = request.has_load()          ? "load"
                       : request.has_measure_hop() ? "measure_hop"
                       : request.has_connect()     ? "connect"
                                                   : "drain";
    spdlog::error("{}: {}: {}", self_.worker_id, name, std::string(status.message()));
    v1::WorkerMessage message;
    v1::Failed* failed = message.mutable_failed();
    failed->set_request(name);
    failed->set_code(WireCode(status));
    failed->set_message(std::string(status.message()));
    return message;
  }

  absl::Status Join(const v1::Join& join) {
    if (join.protocol_version() != kProtocolVersion) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "protocol version %d, this worker speaks %d", join.protocol_version(), kProtocolVersion));
    }
    if (join.worker_id().empty()) return absl::InvalidArgumentError("worker_id is empty");
    self_ = {join.worker_id(), join.epoch(), HostId(), options_.device, options_.data_address};
    if (!options_.device_links.nccl.empty()) {
      // NCCL takes processes of different NCCL_HOSTID for different hosts.
      const char* nccl_host = std::getenv("NCCL_HOSTID");
      self_.nccl = options_.device_links.nccl;
      self_.gpu = absl::StrCat(nccl_host == nullptr ? self_.host_id : std::string(nccl_host), "/",
                               options_.device_links.bus_id);
    }
    v1::WorkerMessage message;
    *message.mutable_joined()->mutable_peer() = ToProto(self_);
    v1::DeviceFacts* device = message.mutable_joined()->mutable_device();
    device->set_cores(static_cast<uint32_t>(UsableCpus()));
    device->set_memory_bytes(static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                             static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
    send_(message);
    return absl::OkStatus();
  }

  absl::StatusOr<v1::WorkerMessage> Load(const v1::Load& load) {
    Disconnect();
    model_ = {};
    ASSIGN_OR_RETURN(LoadRequest request, DecodeLoad(load));
    request.device = options_.device;
    spin_ = std::chrono::microseconds(request.spin_us);
    transports_["shm"] = MakeShmTransport(spin_);
    if (!self_.nccl.empty()) {
      transports_["nccl"] = options_.device_links.make_nccl(
          self_, {transports_["shm"].get(), transports_["grpc"].get()});
    }
    const LoadProgress progress = [this](uint64_t done, uint64_t total) {
      v1::WorkerMessage message;
      message.mutable_load_progress()->set_bytes_done(done);
      message.mutable_load_progress()->set_bytes_total(total);
      send_(message);
      return !stopping_;
    };
    ASSIGN_OR_RETURN(model_, loader_(request, &router_, progress));
    request_ = std::move(request);
    v1::WorkerMessage message;
    v1::Loaded* loaded = message.mutable_loaded();
    loaded->set_weight_bytes(model_.memory.weights);
    loaded->set_kv_bytes(model_.memory.kv);
    loaded->set_recurrent_bytes(model_.memory.recurrent);
    loaded->set_buffer_bytes(model_.memory.buffers);
    const bool in_ram = request_.device == "cpu";
    loaded->set_process_bytes(PrivateBytes() + (in_ram ? model_.memory.weights : 0));
    loaded->set_hidden_dim(static_cast<uint32_t>(model_.hidden_dim));
    return message;
  }

  absl::StatusOr<Transport*> Find(const std::string& name) {
    const auto it = transports_.find(name);
    if (it != transports_.end()) return it->second.get();
    return absl::InvalidArgumentError(absl::StrFormat("unknown transport '%s'", name));
  }

  absl::StatusOr<v1::WorkerMessage> Measure(const v1::MeasureHop& measure) {
    v1::WorkerMessage message;
    v1::HopMeasured* measured = message.mutable_hop_measured();
    const std::vector<uint64_t> sizes(measure.payload_bytes().begin(),
                                      measure.payload_bytes().end());
    constexpr uint64_t kMaxPayload = 256 << 20;
    if (sizes.empty() || *std::max_element(sizes.begin(), sizes.end()) > kMaxPayload) {
      return absl::InvalidArgumentError("sizes to measure are missing or beyond 256 MiB");
    }
    // The initiator's times count, for both ends' copies.
    std::vector<double> copies(sizes.size());
    for (size_t i = 0; i < sizes.size() && measure.initiator(); ++i) {
      if (!options_.device_links.measure_copies) break;
      ASSIGN_OR_RETURN(copies[i], options_.device_links.measure_copies(sizes[i]));
    }
    for (const std::string& name : measure.transports()) {
      ASSIGN_OR_RETURN(Transport * transport, Find(name));
      const absl::StatusOr<std::vector<double>> times =
          MeasureHop(transport, self_, PeerFromProto(measure.peer()), measure.initiator(), sizes);
      // A transport that does not work here is not chosen; the two ends go on to the next alike.
      if (!times.ok()) {
        spdlog::warn("{}: measuring {} to {}: {}", self_.worker_id, name,
                     measure.peer().worker_id(), std::string(times.status().message()));
        continue;
      }
      for (size_t i = 0; i < sizes.size(); ++i) {
        v1::HopMeasured::Time* time = measured->add_times();
        time->set_transport(name);
        time->set_payload_bytes(sizes[i]);
        time->set_one_way_us((*times)[i] + (name == "nccl" ? 0 : copies[i]));
      }
    }
    return message;
  }

  void Disconnect() {
    router_.Close();
    engine_ = nullptr;
    experts_ = nullptr;
    router_.SetRoutes({});
  }

  absl::StatusOr<std::unique_ptr<ReceiveLink>> OpenReceive(const v1::Link& link, const char* name,
                                                           size_t max_bytes) {
    ASSIGN_OR_RETURN(Transport * transport, Find(link.transport()));
    const PeerInfo peer = PeerFromProto(link.peer());
    return transport->OpenReceive({peer.worker_id, self_.worker_id, name}, peer, max_bytes);
  }
  absl::StatusOr<std::unique_ptr<SendLink>> OpenSend(const v1::Link& link, const char* name,
                                                     size_t max_bytes) {
    ASSIGN_OR_RETURN(Transport * transport, Find(link.transport()));
    const PeerInfo peer = PeerFromProto(link.peer());
    return transport->OpenSend({self_.worker_id, peer.worker_id, name}, peer, max_bytes);
  }

  absl::StatusOr<v1::WorkerMessage> Connect(const v1::Connect& connect) {
    if (model_.stage == nullptr && model_.experts == nullptr) {
      return absl::FailedPreconditionError("nothing is loaded");
    }
    if (connect.epoch() < self_.epoch) {
      return absl::FailedPreconditionError(
          absl::StrFormat("epoch %d is older than %d", connect.epoch(), self_.epoch));
    }
    Disconnect();
    self_.epoch = connect.epoch();
    timeout_ = std::chrono::milliseconds(connect.step_timeout_ms());
    RETURN_IF_ERROR(model_.stage != nullptr ? ConnectStage(connect) : ConnectExperts(connect));
    v1::WorkerMessage message;
    message.mutable_connected()->set_epoch(self_.epoch);
    return message;
  }

  absl::Status ConnectStage(const v1::Connect& connect) {
    const StageSpec& spec = *request_.stage;
    const size_t row_bytes = 4 * (static_cast<size_t>(model_.hidden_dim) +
                                  static_cast<size_t>(model_.selection_dim) + 1);
    constexpr size_t kStepTimesBytes = 64;
    const size_t hidden_bytes = row_bytes * static_cast<size_t>(spec.max_tokens) + kStepTimesBytes;
    EngineLinks links;
    // Receiving ends first: opening them waits for nobody, and the senders wait for them.
    if (connect.has_upstream()) {
      ASSIGN_OR_RETURN(links.upstream, OpenReceive(connect.upstream(), "hidden", hidden_bytes));
    }
    if (connect.has_tokens_from()) {
      ASSIGN_OR_RETURN(links.tokens_from,
                       OpenReceive(connect.tokens_from(), "tokens", kTokensBytesMax));
    }
    ASSIGN_OR_RETURN(auto replies, OpenReplies(connect));
    if (connect.has_downstream()) {
      ASSIGN_OR_RETURN(links.downstream, OpenSend(connect.downstream(), "hidden", hidden_bytes));
    }
    if (connect.has_tokens_to()) {
      ASSIGN_OR_RETURN(links.tokens_to, OpenSend(connect.tokens_to(), "tokens", kTokensBytesMax));
    }
    RETURN_IF_ERROR(ConnectExpertsClients(connect, std::move(replies)));
    EngineOptions options;
    options.epoch = self_.epoch;
    options.first = !connect.has_upstream();
    options.last = !connect.has_downstream();
    options.num_slots = spec.num_slots;
    options.step_timeout = timeout_;
    options.direct_from_bytes = connect.downstream().direct_from_bytes();
    options.turn_cpu = request_.turn_cpu;
    if (options.first == options.last ? connect.has_tokens_to() || connect.has_tokens_from()
                                      : connect.has_tokens_to() == options.first ||
                                            connect.has_tokens_from() == options.last) {
      return absl::InvalidArgumentError("token links do not fit the stage's place");
    }
    EngineCallbacks callbacks;
    callbacks.results = [this, epoch = self_.epoch](const std::vector<StepResult>& results) {
      v1::WorkerMessage message;
      message.mutable_step_results()->set_epoch(epoch);
      for (const StepResult& result : results) {
        EncodeStepResult(result, message.mutable_step_results()->add_results());
      }
      send_(message);
    };
    callbacks.link_down = [this](std::string_view what, const absl::Status& status) {
      spdlog::warn("{}: link '{}' broke: {}", self_.worker_id, what, std::string(status.message()));
      v1::WorkerMessage message;
      message.mutable_link_down()->set_link(std::string(what));
      message.mutable_link_down()->set_code(WireCode(status));
      message.mutable_link_down()->set_message(std::string(status.message()));
      send_(message);
    };
    engine_ = std::make_unique<Engine>(model_.stage.get(), &router_, options, std::move(links),
                                       model_.sampling, std::move(callbacks));
    return absl::OkStatus();
  }

  // The receiving ends of experts links; null for mailboxes.
  absl::StatusOr<std::vector<std::unique_ptr<ReceiveLink>>> OpenReplies(
      const v1::Connect& connect) {
    std::vector<std::unique_ptr<ReceiveLink>> replies;
    for (const v1::Connect::ExpertsLink& e : connect.experts()) {
      replies.emplace_back();
      if (e.link().transport() == "mailbox") continue;
      ASSIGN_OR_RETURN(replies.back(), OpenReceive(e.link(), "experts.reply",
                                                   ExpertsReplyBytes(request_.stage->max_tokens,
                                                                     model_.hidden_dim)));
    }
    return replies;
  }

  absl::Status ConnectExpertsClients(const v1::Connect& connect,
                                     std::vector<std::unique_ptr<ReceiveLink>> replies) {
    const int max_tokens = request_.stage->max_tokens;
    std::vector<ExpertsRouter::Route> routes;
    for (int i = 0; i < connect.experts_size(); ++i) {
      const v1::Link& link = connect.experts(i).link();
      ExpertsRouter::Route route;
      route.layers = Ranges(connect.experts(i).layers());
      if (link.transport() == "mailbox") {
        ASSIGN_OR_RETURN(
            route.client,
            MailboxClient::Connect(
                ShmChannelName({self_.worker_id, link.peer().worker_id(), "mailbox"}, self_.epoch),
                {max_tokens, model_.hidden_dim, model_.expert_top_k},
                {.epoch = self_.epoch, .spin = spin_, .timeout = timeout_},
                std::chrono::steady_clock::now() + kOpenTimeout));
      } else {
        ASSIGN_OR_RETURN(auto requests, OpenSend(link, "experts.request",
                                                 ExpertsRequestBytes(max_tokens, model_.hidden_dim,
                                                                     model_.expert_top_k)));
        route.client = std::make_unique<LinkExpertsClient>(
            std::move(requests), std::move(replies[static_cast<size_t>(i)]), self_.epoch, timeout_);
      }
      routes.push_back(std::move(route));
    }
    router_.SetRoutes(std::move(routes));
    return absl::OkStatus();
  }

  absl::Status ConnectExperts(const v1::Connect& connect) {
    auto experts = std::make_unique<ExpertsServers>(model_.experts.get(), request_.turn_cpu);
    const int max_tokens = request_.experts->max_tokens;
    std::vector<std::unique_ptr<ReceiveLink>> requests;
    for (const v1::Link& link : connect.clients()) {
      requests.emplace_back();
      if (link.transport() == "mailbox") {
        ASSIGN_OR_RETURN(
            auto mailbox,
            MailboxServer::Listen(
                ShmChannelName({link.peer().worker_id(), self_.worker_id, "mailbox"}, self_.epoch),
                {max_tokens, model_.hidden_dim, model_.expert_top_k}, spin_));
        experts->ServeMailbox(std::move(mailbox));
      } else {
        ASSIGN_OR_RETURN(
            requests.back(),
            OpenReceive(link, "experts.request",
                        ExpertsRequestBytes(max_tokens, model_.hidden_dim, model_.expert_top_k)));
      }
    }
    for (int i = 0; i < connect.clients_size(); ++i) {
      auto& request = requests[static_cast<size_t>(i)];
      if (request == nullptr) continue;
      ASSIGN_OR_RETURN(auto replies, OpenSend(connect.clients(i), "experts.reply",
                                              ExpertsReplyBytes(max_tokens, model_.hidden_dim)));
      experts->ServeLinks(std::move(request), std::move(replies), timeout_);
    }
    experts_ = std::move(experts);
    return absl::OkStatus();
  }

  absl::Status SubmitSteps(const v1::Steps& steps) {
    if (busy_) return absl::InvalidArgumentError("steps before the last request was answered");
    // Of an epoch that has ended meanwhile.
    if (steps.epoch() != self_.epoch) return absl::OkStatus();
    if (engine_ == nullptr) return absl::InvalidArgumentError("steps before connect");
    const StageSpec& spec = *request_.stage;
    const StepLimits limits = {.num_slots = spec.num_slots,
                               .num_pages = spec.num_pages,
                               .num_snapshots = spec.num_snapshots,
                               .max_tokens = spec.max_tokens,
                               .vocab_size = model_.vocab_size};
    std::vector<Step> decoded;
    for (const v1::Step& step : steps.steps()) {
      ASSIGN_OR_RETURN(decoded.emplace_back(), DecodeStep(step, limits));
    }
    engine_->Submit(std::move(decoded));
    return absl::OkStatus();
  }

  absl::StatusOr<v1::WorkerMessage> Drain() {
    if (engine_ != nullptr) {
      RETURN_IF_ERROR(engine_->Drain(std::chrono::steady_clock::now() + timeout_));
    }
    v1::WorkerMessage message;
    message.mutable_drained();
    return message;
  }

  const WorkerOptions options_;
  const ModelLoader loader_;
  TensorService* const service_;
  const Sender send_;
  std::map<std::string, std::unique_ptr<Transport>> transports_;
  PeerInfo self_;
  std::chrono::nanoseconds spin_{0};
  std::chrono::milliseconds timeout_{60'000};
  ExpertsRouter router_;
  LoadRequest request_;
  LoadedModel model_;
  std::unique_ptr<ExpertsServers> experts_;
  std::unique_ptr<Engine> engine_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> busy_{false};  // a request is under way and owns all of the above
  std::thread request_thread_;
};

Worker::Worker(WorkerOptions options, ModelLoader loader, TensorService* service, Sender send)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(loader), service,
                                   std::move(send))) {}
Worker::~Worker() = default;
absl::Status Worker::Handle(const v1::CoordinatorMessage& message) {
  return impl_->Handle(message);
}

}  // namespace packtrain
