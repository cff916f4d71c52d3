#include "worker/engine/experts_router.h"

#include "absl/strings/str_format.h"
#include "common/base/check.h"

namespace packtrain {

void ExpertsRouter::SetRoutes(std::vector<Route> routes) {
  current_ = nullptr;
  routes_ = std::move(routes);
}

void ExpertsRouter::BeginStep(uint64_t step_id) {
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
  return current_->Await(y);
}

void ExpertsRouter::Close() {
  for (Route& route : routes_) route.client->Close();
}

}  // namespace packtrain
