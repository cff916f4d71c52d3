#pragma once

// A running endpoint as bench sees it: over HTTP, as its clients do.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/cli/bench_runs.h"
#include "coordinator/cli/http_client.h"

namespace packtrain {

class EndpointTarget : public BenchTarget {
 public:
  // `url`: HOST:PORT, with or without http://. `model`: empty for the endpoint's first.
  EndpointTarget(std::string url, std::string model, std::string api_key);

  // Finds the endpoint's model. Errors: UNAVAILABLE, INVALID_ARGUMENT.
  absl::Status Open();

  const std::string& model() const { return model_; }
  int context() const { return context_; }
  // The endpoint's plan of this model; null if it has none.
  nlohmann::json plan();

  int vocab_size() const override { return vocab_size_; }
  absl::StatusOr<std::vector<TokenTimes>> Run(std::vector<std::vector<TokenId>> prompts,
                                              int tokens) override;
  StepTimes decode_step() override;

 private:
  absl::StatusOr<std::string> Get(const std::string& path);
  absl::StatusOr<TokenTimes> Stream(const std::vector<TokenId>& prompt, int tokens) const;

  const std::string url_;
  std::string model_;
  HttpRequest request_;
  int context_ = 0;
  // Where an endpoint does not tell: every model has so many.
  int vocab_size_ = 256;
};

}  // namespace packtrain
