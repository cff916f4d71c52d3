#pragma once

// One ExpertsClient for a stage whose layers' experts are served by several workers. Exists from
// load to end of the stage; its clients come and go with the links.

#include <memory>
#include <utility>
#include <vector>

#include "worker/engine/experts.h"

namespace packtrain {

class ExpertsRouter : public ExpertsClient {
 public:
  struct Route {
    std::unique_ptr<ExpertsClient> client;
    std::vector<std::pair<int, int>> layers;  // half-open
  };
  // Not while a stage runs.
  void SetRoutes(std::vector<Route> routes);

  void BeginStep(uint64_t step_id) override;
  // UNAVAILABLE for a layer that nobody serves.
  absl::Status Post(const ExpertsRequest& request) override;
  absl::Status Await(float* y) override;
  std::shared_ptr<DeviceMailbox> device_mailbox(int layer) override;
  std::chrono::nanoseconds waited() const override;
  ExpertsUse used() const override;
  void Close() override;

 private:
  ExpertsClient* Find(int layer) const;

  std::vector<Route> routes_;
  ExpertsClient* current_ = nullptr;
  std::chrono::nanoseconds waited_{0};  // in Await
};

}  // namespace packtrain
