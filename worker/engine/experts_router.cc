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

ExpertsClient* ExpertsRouter::Find(int layer) const {
  for (const Route& route : routes_) {
    for (const auto& [first, last] : route.layers) {
      if (layer >= first && layer < last) return route.client.get();
    }
  }
  return nullptr;
}

absl::Status ExpertsRouter::Post(const ExpertsRequest& request) {
  current_ = Find(request.layer);
  if (current_ != nullptr) return current_->Post(request);
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

std::shared_ptr<DeviceMailbox> ExpertsRouter::device_mailbox(int layer) {
  ExpertsClient* client = Find(layer);
  return client == nullptr ? nullptr : client->device_mailbox(layer);
}

std::chrono::nanoseconds ExpertsRouter::waited() const {
  std::chrono::nanoseconds sum = waited_;
  for (const Route& route : routes_) sum += route.client->waited();
  return sum;
}

ExpertsUse ExpertsRouter::used() const {
  ExpertsUse sum;
  for (const Route& route : routes_) {
    const ExpertsUse use = route.client->used();
    sum.experts += use.experts;
    sum.requests += use.requests;
  }
  return sum;
}

void ExpertsRouter::Close() {
  for (Route& route : routes_) route.client->Close();
}

}  // namespace packtrain
