#pragma once

// The experts service over a pair of links: for an experts worker of another host.

#include <chrono>
#include <memory>
#include <vector>

#include "worker/engine/experts.h"
#include "worker/transport/transport.h"

namespace packtrain {

// Payload bytes of the largest request and reply.
size_t ExpertsRequestBytes(int max_tokens, int hidden_dim, int top_k);
size_t ExpertsReplyBytes(int max_tokens, int hidden_dim);

// The stage's end.
class LinkExpertsClient : public ExpertsClient {
 public:
  // `timeout`: from Post to reply.
  LinkExpertsClient(std::unique_ptr<SendLink> requests, std::unique_ptr<ReceiveLink> replies,
                    uint64_t epoch, std::chrono::milliseconds timeout);
  void BeginStep(uint64_t step_id) override;
  absl::Status Post(const ExpertsRequest& request) override;
  absl::Status Await(float* y) override;
  ExpertsUse used() const override { return used_; }
  void Close() override;

 private:
  const std::unique_ptr<SendLink> requests_;
  const std::unique_ptr<ReceiveLink> replies_;
  const uint64_t epoch_;
  const std::chrono::milliseconds timeout_;
  uint64_t step_ = 0;
  int32_t serial_ = 0;  // of the outstanding request; a late reply carries another
  std::chrono::steady_clock::time_point deadline_;
  int tokens_ = 0, hidden_dim_ = 0;
  Bundle request_, reply_;
  std::vector<int32_t> ids_;  // of the last request
  ExpertsUse used_;
};

// The experts worker's end: answers until a link breaks or is closed, and returns why.
absl::Status ServeExperts(ReceiveLink* requests, SendLink* replies,
                          std::chrono::milliseconds timeout, ExpertsBackend* backend);

}  // namespace packtrain
