#include "worker/server/experts_servers.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "worker/engine/experts_link.h"
#include "worker/engine/turn_cpu.h"

namespace packtrain {

class ExpertsServers::Turns : public ExpertsBackend {
 public:
  explicit Turns(ExpertsServers* servers) : servers_(servers), turn_cpu_(servers->turn_cpu_) {}

  absl::Status Compute(const ExpertsRequest& request, float* y) override {
    turn_cpu_.Begin(/*alternates=*/request.tokens == 1, std::chrono::steady_clock::now());
    MutexLock lock(&servers_->mutex_);
    return servers_->backend_->Compute(request, y);
  }

 private:
  ExpertsServers* const servers_;
  TurnCpu turn_cpu_;
};

ExpertsServers::ExpertsServers(ExpertsBackend* backend, std::optional<int> turn_cpu)
    : backend_(backend), turn_cpu_(turn_cpu) {}

ExpertsServers::~ExpertsServers() {
  for (auto& client : clients_) {
    if (client->mailbox != nullptr) client->mailbox->Close();
    if (client->requests != nullptr) client->requests->Close();
    if (client->replies != nullptr) client->replies->Close();
  }
  for (auto& client : clients_) client->thread.join();
}

void ExpertsServers::ServeMailbox(std::unique_ptr<MailboxServer> mailbox) {
  auto client = std::make_unique<Client>();
  client->mailbox = std::move(mailbox);
  client->thread = std::thread([this, c = client.get()] {
    Turns backend(this);
    const absl::Status status = c->mailbox->Serve(&backend);
    if (absl::IsDataLoss(status)) spdlog::error("experts: {}", std::string(status.message()));
  });
  clients_.push_back(std::move(client));
}

void ExpertsServers::ServeLinks(std::unique_ptr<ReceiveLink> requests,
                                std::unique_ptr<SendLink> replies,
                                std::chrono::milliseconds timeout) {
  auto client = std::make_unique<Client>();
  client->requests = std::move(requests);
  client->replies = std::move(replies);
  client->thread = std::thread([this, timeout, c = client.get()] {
    Turns backend(this);
    const absl::Status status =
        ServeExperts(c->requests.get(), c->replies.get(), timeout, &backend);
    if (absl::IsDataLoss(status)) spdlog::error("experts: {}", std::string(status.message()));
    c->requests->Close();
    c->replies->Close();
  });
  clients_.push_back(std::move(client));
}

}  // namespace packtrain
