#include "coordinator/fleet/fleet_messages.h"

#include <algorithm>
#include <limits>

#include "common/base/host_limits.h"
#include "common/base/status_macros.h"
#include "common/model/weight_segment.h"
#include "common/rpc/step_codec.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

// Of a message with several steps; far below what a message may have.
constexpr size_t kStepsBytesMax = 1 << 20;

void SetRange(const LayerRange& in, v1::LayerRange* out) {
  out->set_first(static_cast<uint32_t>(in.first));
  out->set_last(static_cast<uint32_t>(in.last));
}

// The first stage embeds, the last has the head.
bool IsFirst(const DeploymentPlan& plan, const WorkerPlan& worker) {
  for (const WorkerPlan& w : plan.workers) {
    if (w.role == WorkerRole::kStage) return w.name == worker.name;
  }
  return false;
}
bool IsLast(const DeploymentPlan& plan, const WorkerPlan& worker) {
  for (auto w = plan.workers.rbegin(); w != plan.workers.rend(); ++w) {
    if (w->role == WorkerRole::kStage) return w->name == worker.name;
  }
  return false;
}

// Several workers of one thread each: for one sequence one of them computes at a time.
bool TakesTurns(const DeploymentPlan& plan) {
  return plan.workers.size() > 1 &&
         std::all_of(plan.workers.begin(), plan.workers.end(),
                     [](const WorkerPlan& w) { return w.device == "cpu" && w.threads == 1; });
}

std::vector<Shard> ShardsOf(const DeploymentPlan& plan, const WorkerPlan& worker) {
  if (worker.role == WorkerRole::kStage) {
    return {{.first_layer = worker.layers.first,
             .last_layer = worker.layers.last,
             .embeds = IsFirst(plan, worker),
             .has_head = IsLast(plan, worker),
             .first_experts = worker.resident_experts.first,
             .last_experts = worker.resident_experts.last}};
  }
  std::vector<std::pair<int, int>> layers;
  for (const LayerRange& r : worker.expert_layers) layers.emplace_back(r.first, r.last);
  return ExpertsShards(layers);
}

}  // namespace

uint64_t DecodeBytes(const DeploymentPlan& plan) {
  return sizeof(float) * static_cast<uint64_t>(std::max(plan.hidden_dim, 1));
}

uint32_t SpinMicroseconds(const std::vector<std::unique_ptr<FleetWorker>>& workers,
                          const std::string& host_id) {
  int cores = std::numeric_limits<int>::max();
  for (const auto& w : workers) {
    if (w->peer().host_id() == host_id) cores = std::min(cores, w->cores());
  }
  int spinners = 0;
  for (const auto& w : workers) {
    if (w->peer().host_id() != host_id) continue;
    const bool computes = w->plan().device == "cpu";
    spinners += !computes ? 1 : w->plan().threads > 0 ? w->plan().threads : cores;
    if (w->stage()) continue;
    // Beside those that compute, one waits for each stage, and one of these computes too.
    for (const auto& stage : workers) {
      spinners += stage->stage() && ServesStage(w->plan(), stage->plan());
    }
    --spinners;
  }
  return static_cast<uint32_t>(SpinBudget(spinners, cores));
}

bool ServesStage(const WorkerPlan& experts, const WorkerPlan& stage) {
  return std::any_of(experts.expert_layers.begin(), experts.expert_layers.end(),
                     [&](const LayerRange& r) {
                       return r.first < stage.layers.last && stage.layers.first < r.last;
                     });
}

absl::Status CreateWorkerSegments(const DeploymentPlan& plan,
                                  std::vector<std::unique_ptr<FleetWorker>>* workers) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(plan.model_path));
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(*file));
  ASSIGN_OR_RETURN(const ModelTensors tensors, ModelTensors::Resolve(config, *file));
  std::vector<FleetWorker*> local;
  std::vector<uint64_t> sizes;
  for (auto& worker : *workers) {
    // A GPU's weights go to the GPU.
    if (!worker->local() || worker->plan().device != "cpu") continue;
    local.push_back(worker.get());
    sizes.push_back(PlanShardSegment(*file, config, tensors, ShardsOf(plan, worker->plan())).bytes);
  }
  ASSIGN_OR_RETURN(const std::vector<int> fds, CreateSegments(sizes));
  for (size_t i = 0; i < local.size(); ++i) local[i]->set_segment_fd(fds[i]);
  for (auto& stage : *workers) {
    if (!stage->stage() || !stage->local() || stage->plan().device == "cpu") continue;
    for (const auto& experts : *workers) {
      if (!experts->stage() && experts->segment_fd() >= 0 &&
          ServesStage(experts->plan(), stage->plan())) {
        stage->StreamFrom(experts.get());
      }
    }
  }
  return absl::OkStatus();
}

v1::CoordinatorMessage LoadMessage(const DeploymentPlan& plan, const FleetWorker& worker,
                                   uint32_t spin_us) {
  v1::CoordinatorMessage message;
  v1::Load* load = message.mutable_load();
  load->set_model_path(plan.model_path);
  load->set_threads(static_cast<uint32_t>(worker.plan().threads));
  load->set_segment_fd(worker.segment_fd());
  load->set_spin_us(spin_us);
  if (spin_us == 0 && TakesTurns(plan)) {
    load->set_turn_cpu(static_cast<uint32_t>(plan.ordinal));
  }
  if (worker.stage()) {
    v1::StageSpec* stage = load->mutable_stage();
    SetRange(worker.plan().layers, stage->mutable_layers());
    SetRange(worker.plan().resident_experts, stage->mutable_resident_experts());
    stage->set_embeds(IsFirst(plan, worker.plan()));
    stage->set_has_head(IsLast(plan, worker.plan()));
    stage->set_kv_cache(static_cast<uint32_t>(plan.kv_cache));
    stage->set_num_pages(static_cast<uint32_t>(plan.num_pages));
    stage->set_num_slots(static_cast<uint32_t>(plan.num_slots));
    stage->set_num_snapshots(static_cast<uint32_t>(plan.num_snapshots));
    stage->set_max_tokens(static_cast<uint32_t>(plan.max_tokens));
    stage->set_streamed_rows(static_cast<uint32_t>(plan.streamed_rows));
    for (const FleetWorker* experts : worker.streams_from()) {
      v1::Load::ExpertsSegment* segment = load->add_experts_segments();
      segment->set_fd(experts->segment_fd());
      for (const LayerRange& r : experts->plan().expert_layers) {
        SetRange(r, segment->add_layers());
      }
    }
    return message;
  }
  v1::ExpertsSpec* experts = load->mutable_experts();
  experts->set_max_tokens(static_cast<uint32_t>(plan.max_tokens));
  experts->set_streamed_rows(static_cast<uint32_t>(plan.streamed_rows));
  for (const LayerRange& r : worker.plan().expert_layers) SetRange(r, experts->add_layers());
  return message;
}

v1::CoordinatorMessage MeasureMessage(const DeploymentPlan& plan, const v1::PeerInfo& peer,
                                      bool initiator, const std::vector<std::string>& transports) {
  v1::CoordinatorMessage message;
  v1::MeasureHop* measure = message.mutable_measure_hop();
  *measure->mutable_peer() = peer;
  measure->set_initiator(initiator);
  for (const std::string& t : transports) measure->add_transports(t);
  measure->add_payload_bytes(DecodeBytes(plan));
  measure->add_payload_bytes(DecodeBytes(plan) * static_cast<uint64_t>(plan.max_tokens));
  return message;
}

v1::CoordinatorMessage ConnectMessage(const FleetWorker& worker,
                                      const std::vector<FleetWorker*>& all,
                                      const LinkChoices& choices, uint64_t epoch,
                                      std::chrono::milliseconds step_timeout) {
  v1::CoordinatorMessage message;
  v1::Connect* connect = message.mutable_connect();
  connect->set_epoch(epoch);
  connect->set_step_timeout_ms(static_cast<uint32_t>(step_timeout.count()));
  const auto fill = [](v1::Link* link, const FleetWorker& peer, const LinkChoice& choice) {
    *link->mutable_peer() = peer.peer();
    link->set_transport(choice.transport);
    link->set_direct_from_bytes(choice.direct_from_bytes);
  };
  FleetWorker* first = nullptr;
  FleetWorker* last = nullptr;
  for (FleetWorker* w : all) {
    if (!w->stage()) continue;
    if (first == nullptr) first = w;
    last = w;
  }
  for (const auto& [pair, choice] : choices) {
    const auto& [from, to] = pair;
    const bool sends = from == &worker;
    if (!sends && to != &worker) continue;
    if (!to->stage()) {
      if (sends) {
        v1::Connect::ExpertsLink* experts = connect->add_experts();
        fill(experts->mutable_link(), *to, choice);
        for (const LayerRange& r : to->plan().expert_layers) SetRange(r, experts->add_layers());
      } else {
        fill(connect->add_clients(), *from, choice);
      }
    } else if (from == last && to == first) {
      fill(sends ? connect->mutable_tokens_to() : connect->mutable_tokens_from(),
           sends ? *to : *from, choice);
    } else {
      fill(sends ? connect->mutable_downstream() : connect->mutable_upstream(), sends ? *to : *from,
           choice);
    }
  }
  return message;
}

std::vector<v1::CoordinatorMessage> StepsMessages(const std::vector<Step>& steps, uint64_t epoch) {
  std::vector<v1::CoordinatorMessage> messages;
  size_t bytes = 0;
  for (const Step& step : steps) {
    v1::Step encoded;
    EncodeStep(step, &encoded);
    bytes += encoded.ByteSizeLong();
    if (messages.empty() || bytes > kStepsBytesMax) {
      messages.emplace_back().mutable_steps()->set_epoch(epoch);
      bytes = encoded.ByteSizeLong();
    }
    *messages.back().mutable_steps()->add_steps() = std::move(encoded);
  }
  return messages;
}

}  // namespace packtrain
