// The HTTP server over two scripted deployments, for clients that are not written in C++. Prints
// "port N" and serves until its input ends.

#include <prometheus/registry.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/api/api_server.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/chat_template_host.h"
#include "tests/support/fake_deployment.h"

int main() {
  using namespace packtrain;
  const auto host = ChatTemplateHost::Create();
  const ChatTemplate chat_template(
      "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}assistant:<think>", "<bos>",
      "<eos>", host.get());
  const auto info = [](std::string name, std::string role) {
    return DeploymentInfo{.name = std::move(name),
                          .role = std::move(role),
                          .architecture = "glm-dsa",
                          .context_length = 4096,
                          .parameters = 22290000,
                          .file_bytes = 14421376};
  };
  FakeDeployment big(info("big", "primary"), std::make_unique<FakeTokenizer>(), &chat_template);
  FakeDeployment small(info("small", "sidecar"), std::make_unique<FakeTokenizer>(), nullptr);
  big.SetScript(BytesOf("\nwhy</think>\nHello, world"));
  small.SetScript(BytesOf("ok"));
  auto server = ApiServer::Start({}, {&big, &small}, std::make_shared<prometheus::Registry>());
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 1;
  }
  std::printf("port %d\n", (*server)->port());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}
