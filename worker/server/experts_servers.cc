#include "worker/server/experts_servers.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "worker/engine/experts_link.h"

namespace packtrain {

absl::Status ExpertsServers::Serialised::Compute(const ExpertsRequest& request, float* y) {
  MutexLock lock(&mutex_);
  return backend_->Compute(request, y);
}

ExpertsServers::ExpertsServers(ExpertsBackend* backend) : backend_(backend) {}

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
    const absl::Status status = c->mailbox->Serve(&backend_);
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
    const absl::Status status =
        ServeExperts(c->requests.get(), c->replies.get(), timeout, &backend_);
    if (absl::IsDataLoss(status)) spdlog::error("experts: {}", std::string(status.message()));
    c->requests->Close();
    c->replies->Close();
  });
  clients_.push_back(std::move(client));
}

}  // namespace packtrain
