// The real scheduler over simulated stages and a simulated clock, in many random schedules: sizes,
// stages, memory, delays, cancellations, deaths of workers. Every request must end, with the tokens
// that a run of it alone gives, and nothing may leak. A failure names its seed; run one again with
// PACKTRAIN_SIM_SEED; PACKTRAIN_SIM_COUNT runs more of them.

#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "coordinator/scheduler/scheduler.h"
#include "gtest/gtest.h"
#include "tests/sim/recording_sink.h"
#include "tests/sim/sim_pipeline.h"

namespace packtrain {
namespace {

using std::chrono::microseconds;

struct Client {
  GenerationRequest request;
  std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
  bool cancelled = false;
};

// One random world.
class World {
 public:
  explicit World(uint64_t seed) : rng_(seed) {
    limits_.num_stages = Pick(1, 4);
    limits_.num_slots = Pick(1, 8);
    limits_.num_pages = Pick(3, 40);
    limits_.num_snapshots = Pick(0, 1) == 0 ? 0 : Pick(1, 12);
    limits_.max_tokens = Pick(8, 200);
    limits_.context_length = Pick(40, 900);
    end_every_ = Pick(5, 120);
    death_percent_ = Pick(0, 2) == 0 ? Pick(1, 3) : 0;
    cancel_percent_ = Pick(0, 40);
    num_clients_ = Pick(1, 24);
    pipeline_ = std::make_unique<SimPipeline>(
        limits_, end_every_,
        [this](const Step& step, int) {
          int rows = 0;
          for (const StepSequence& part : step.sequences) rows += part.num_tokens();
          return microseconds(Pick(1, 100) + rows);
        },
        microseconds(Pick(0, 300)));
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerOptions{.vocab_size = kFakeVocab,
                         .is_end_of_generation = [](TokenId id) { return id == kFakeEnd; }});
    scheduler_->OnPipelineReady(limits_, now_);
  }

  // "" or what went wrong.
  std::string Run() {
    for (int i = 0; i < num_clients_; ++i) {
      At(microseconds(Pick(0, 20000)), [this] { Arrive(); });
    }
    for (int i = 0; i < 200000; ++i) {
      if (std::string wrong = Pump(); !wrong.empty()) return wrong;
      if (!NextEvent()) return CheckEnd();
    }
    return absl::StrFormat(
        "still running after 200000 events: %d waiting, %d running, %d preemptions; %d stages, %d "
        "slots, %d pages, %d snapshots, %d rows, context %d",
        scheduler_->num_waiting(), scheduler_->num_running(), scheduler_->num_preemptions(),
        limits_.num_stages, limits_.num_slots, limits_.num_pages, limits_.num_snapshots,
        limits_.max_tokens, limits_.context_length);
  }

 private:
  int Pick(int low, int high) {
    return low + static_cast<int>(rng_() % static_cast<uint64_t>(high - low + 1));
  }
  void At(SimDuration delay, std::function<void()> action) {
    events_.emplace(now_ + delay, std::move(action));
  }

  // Many prompts share a beginning with an earlier one, and some continue a finished chat.
  std::vector<TokenId> MakePrompt() {
    const int context = std::min(limits_.context_length, limits_.num_pages * kPagePositions);
    std::vector<TokenId> ids;
    if (!clients_.empty() && Pick(0, 3) > 0) {
      const auto& [id, other] =
          *std::next(clients_.begin(), Pick(0, static_cast<int>(clients_.size()) - 1));
      ids = other.request.prompt;
      if (Pick(0, 1) == 0) {
        ids.insert(ids.end(), other.sink->tokens.begin(), other.sink->tokens.end());
      }
      if (Pick(0, 2) > 0) ids.resize(static_cast<size_t>(Pick(0, static_cast<int>(ids.size()))));
    }
    const int more = Pick(0, 3) == 0 ? 0 : Pick(1, 150);
    for (int i = 0; i < more; ++i) ids.push_back(Pick(1, kFakeVocab - 1));
    if (ids.empty()) ids.push_back(1);
    if (static_cast<int>(ids.size()) > context - 1) ids.resize(static_cast<size_t>(context - 1));
    return ids;
  }

  void Arrive() {
    const RequestId id = next_id_++;
    Client client;
    client.request.prompt = MakePrompt();
    client.request.sampling.seed = static_cast<uint64_t>(Pick(0, 2));
    client.request.max_tokens = Pick(0, 200);
    client.request.ignore_eos = Pick(0, 3) == 0;
    client.request.prompt_logprobs = Pick(0, 5) == 0;
    client.request.last_turn_start = Pick(0, static_cast<int>(client.request.prompt.size()));
    const bool copies = Pick(0, 4) == 0;
    for (int i = 0; i < (copies ? 3 : 1); ++i) {
      Client one = client;
      one.sink = std::make_shared<RecordingSink>();
      one.request.sampling.seed += static_cast<uint64_t>(i);
      scheduler_->Submit(id + static_cast<uint64_t>(i) * 1000, one.request, one.sink, now_);
      clients_.emplace(id + static_cast<uint64_t>(i) * 1000, std::move(one));
    }
    if (Pick(1, 100) <= cancel_percent_) {
      At(microseconds(Pick(0, 30000)), [this, id] {
        clients_.at(id).cancelled = true;
        scheduler_->Cancel(id, now_);
      });
    }
  }

  std::string Pump() {
    while (std::optional<Step> step = scheduler_->NextStep(now_)) {
      pipeline_->Submit(std::move(*step), now_);
      const size_t most = static_cast<size_t>(4 * limits_.num_stages);
      if (pipeline_->steps_in_flight() > most) return "too many steps in flight";
    }
    if (!pipeline_->violation().empty()) return pipeline_->violation();
    if (absl::Status status = scheduler_->CheckIntegrity(); !status.ok()) {
      return std::string(status.message());
    }
    return "";
  }

  bool NextEvent() {
    const std::optional<SchedulerTime> result_at = pipeline_->NextResultAt();
    if (!result_at && events_.empty()) return false;
    if (result_at && (events_.empty() || *result_at <= events_.begin()->first)) {
      now_ = std::max(now_, *result_at);
      scheduler_->OnResult(pipeline_->TakeResult(), now_);
      if (scheduler_->pipeline_up() && Pick(1, 1000) <= death_percent_) Die();
      return true;
    }
    now_ = std::max(now_, events_.begin()->first);
    const std::function<void()> action = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    action();
    return true;
  }

  void Die() {
    pipeline_->Kill(now_);
    if (pipeline_->steps_in_flight() == 0) scheduler_->OnPipelineLost(now_);
    At(microseconds(Pick(1, 5000)), [this] { Recover(); });
  }

  void Recover() {
    if (pipeline_->steps_in_flight() > 0 || scheduler_->pipeline_up()) {
      At(microseconds(100), [this] { Recover(); });
      return;
    }
    pipeline_->Restart();
    scheduler_->OnPipelineReady(limits_, now_);
  }

  std::string CheckClient(const Client& client) const {
    const RecordingSink& sink = *client.sink;
    if (!sink.finished) return "a request did not end";
    if (sink.wrong_order) return "events in the wrong order";
    if (!sink.result.status.ok() && !client.cancelled) return sink.result.status.ToString();
    const int context = std::min(limits_.context_length, limits_.num_pages * kPagePositions);
    std::vector<TokenId> ids = client.request.prompt;
    FinishReason reason = FinishReason::kLength;
    size_t count = 0;
    while (static_cast<int>(count) < client.request.max_tokens &&
           static_cast<int>(ids.size()) < context) {
      const TokenId next = FakeNextToken(ids, client.request.sampling.seed, end_every_);
      const bool given = count < sink.tokens.size();
      if (!given && client.cancelled) return "";
      if (!given) return "a token is missing";
      if (sink.tokens[count] != next) return absl::StrFormat("token %d differs", count);
      ids.push_back(next);
      ++count;
      if (next == kFakeEnd && !client.request.ignore_eos) {
        reason = FinishReason::kStop;
        break;
      }
    }
    if (count != sink.tokens.size()) return "tokens beyond the end";
    if (sink.result.status.ok() && sink.result.reason != reason) return "another finish reason";
    if (client.request.prompt_logprobs && sink.prompt_done) {
      const auto& prompt = client.request.prompt;
      if (sink.prompt.prompt_logprobs.size() != prompt.size()) return "prompt entries missing";
      for (size_t i = 0; i < prompt.size(); ++i) {
        if (sink.prompt.prompt_logprobs[i].id != prompt[i]) return "another prompt entry";
      }
    }
    return "";
  }

  std::string CheckEnd() const {
    for (const auto& [id, client] : clients_) {
      if (std::string wrong = CheckClient(client); !wrong.empty()) {
        return absl::StrFormat("request %d: %s", id, wrong);
      }
    }
    if (!scheduler_->idle()) return "something is left in the scheduler";
    if (absl::Status status = scheduler_->CheckIntegrity(); !status.ok()) {
      return std::string(status.message());
    }
    return "";
  }

  std::mt19937_64 rng_;
  PipelineLimits limits_;
  int end_every_ = 0;
  int death_percent_ = 0;
  int cancel_percent_ = 0;
  int num_clients_ = 0;
  RequestId next_id_ = 1;
  SchedulerTime now_{};
  std::multimap<SchedulerTime, std::function<void()>> events_;
  std::unique_ptr<SimPipeline> pipeline_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, Client> clients_;
};

TEST(SchedulerSimTest, RandomSchedulesGiveTheTokensOfSingleRunsAndLeakNothing) {
  uint64_t first = 1;
  uint64_t count = 3000;
  if (const char* seed = std::getenv("PACKTRAIN_SIM_SEED")) {
    first = std::strtoull(seed, nullptr, 10);
    count = 1;
  }
  if (const char* many = std::getenv("PACKTRAIN_SIM_COUNT")) {
    count = std::strtoull(many, nullptr, 10);
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const std::string wrong = World(seed).Run();
    ASSERT_EQ(wrong, "") << "PACKTRAIN_SIM_SEED=" << seed;
  }
}

}  // namespace
}  // namespace packtrain
