#include "worker/engine/experts_router.h"

#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace packtrain {

void ExpertsRouter::SetRoutes(std::vector<Route> routes) {
  current_ = nullptr;
  routes_ = std::move(routes);
}

void ExpertsRouter::BeginStep(uint64_t step_id) {
  waited_ = {};
  for (Route& route : routes_) route.client->BeginStep(step_id);
}

absl::Status ExpertsRouter::Post(const ExpertsRequest& request) {
  current_ = nullptr;
  for (Route& route : routes_) {
    for (const auto& [first, last] : route.layers) {
      if (request.layer < first || request.layer >= last) continue;
      current_ = route.client.get();
      return current_->Post(request);
    }
  }
  return absl::UnavailableError(
      absl::StrFormat("layer %d: no worker serves its experts", request.layer));
}

absl::Status ExpertsRouter::Await(float* y) {
  CHECK_MSG(current_ != nullptr, "Await without Post");
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = current_->Await(y);
  waited_ += std::chrono::steady_clock::now() - begin;
  return status;
}

void ExpertsRouter::Close() {
  for (Route& route : routes_) route.client->Close();
}

}  // namespace packtrain
