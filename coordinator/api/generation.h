#pragma once

// One completion request on its way: submits its choices to the deployment, turns their events into
// the reply (streamed or whole), cancels them when the client has gone.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/api_metrics.h"
#include "coordinator/api/choice_assembler.h"
#include "coordinator/api/completion_json.h"
#include "coordinator/api/deployment.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/request_parser.h"

namespace packtrain {

class GenerationInbox;

// I/O thread only. Kept alive by its exchange until the reply is complete or aborted.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  // `request.prompts` all have ids that fit the context; `starts_in_reasoning` as in
  // ChoiceAssembler. `deployment` and `metrics` outlive the server.
  Generation(std::shared_ptr<HttpExchange> exchange, Deployment* deployment, ApiMetrics* metrics,
             CompletionRequest request, bool starts_in_reasoning);
  ~Generation();
  void Start();

 private:
  struct Choice {
    ChoiceAssembler assembler;
    RequestId request_id = 0;
    bool in_flight = false;
    bool cancelled = false;  // a stop string matched
    bool first = true;       // nothing streamed yet
  };

  GenerationRequest RequestFor(size_t index) const;
  const CompletionRequest::Prompt& PromptOf(size_t index) const;
  absl::Status Submit();
  void Drain();
  void OnPromptDone(size_t index, PromptResult result);
  void OnToken(size_t index, const TokenEvent& token);
  void OnFinish(size_t index, const GenerationResult& result);
  void StreamDelta(size_t index, const std::string& finish_reason);
  void Complete();
  void Fail(const absl::Status& status);
  void Stop();

  std::shared_ptr<HttpExchange> exchange_;
  Deployment* deployment_;
  ApiMetrics* metrics_;
  const CompletionRequest request_;
  std::shared_ptr<GenerationInbox> inbox_;  // shared with the sinks, which may outlive us
  CompletionJson json_;
  std::vector<Choice> choices_;
  size_t submitted_ = 0;
  size_t finished_ = 0;
  size_t in_flight_ = 0;
  bool streaming_ = false;
  bool done_ = false;
  std::string out_;  // stream events of the current batch
  CompletionUsage usage_;
  CompletionTimings timings_;
};

}  // namespace packtrain
