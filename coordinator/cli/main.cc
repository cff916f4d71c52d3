// packtrain's sub-commands.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/cli/chat_command.h"
#include "coordinator/cli/serve_command.h"
#include "coordinator/cli/tokenize_command.h"

namespace packtrain {
namespace {

constexpr int kUsageError = 2;

CLI::App* AddChat(CLI::App* app, ChatOptions* options) {
  CLI::App* chat = app->add_subcommand("chat", "talk to a running endpoint");
  chat->add_option("message", options->message, "one question; without it, a conversation");
  chat->add_option("--endpoint", options->endpoint, "HOST:PORT")->capture_default_str();
  chat->add_option("--model", options->model, "deployment; default: the endpoint's first");
  chat->add_option("--system", options->system, "system message");
  chat->add_option("--api-key", options->api_key, "key of the endpoint")
      ->envname("PACKTRAIN_API_KEY");
  chat->add_option("--max-tokens", options->max_tokens, "limit of an answer")
      ->check(CLI::Range(1, 1 << 24));
  chat->add_flag("--thinking", options->thinking, "let the model think first");
  return chat;
}

CLI::App* AddServe(CLI::App* app, ServeOptions* options) {
  CLI::App* serve = app->add_subcommand("serve", "serve a topology, or a model on this machine");
  CLI::Option* topology =
      serve->add_option("topology", options->topology_path, "YAML file")->type_name("FILE");
  CLI::Option* model = serve->add_option("--model", options->model_path, "GGUF file (first piece)");
  model->excludes(topology);
  std::vector<CLI::Option*> rest = {
      serve->add_option("--sidecar", options->sidecar_path, "second model, served beside it"),
      serve->add_option("--host", options->host, "address to listen on")->capture_default_str(),
      serve->add_option("--port", options->port, "port to listen on, 0 for a free one")
          ->check(CLI::Range(0, 65535))
          ->capture_default_str(),
      serve->add_option("--context", options->context, "positions of one sequence")
          ->check(CLI::Range(64, 16 << 20)),
      serve->add_option("--kv-cache", options->kv_cache, "type of the KV cache")
          ->check(CLI::IsMember({"f32", "f16", "q8_0", "q4_1"}))
          ->capture_default_str(),
      serve->add_option("--threads", options->threads, "of each worker; default: physical cores")
          ->check(CLI::Range(1, 1024)),
      serve->add_option("--stages", options->stages, "CPU workers in the primary's pipeline")
          ->check(CLI::Range(1, 256))
          ->capture_default_str(),
      serve
          ->add_flag("--experts-worker", options->experts_worker,
                     "the primary's routed experts in a worker of their own")
          ->disable_flag_override(),
      serve->add_option("--slots", options->slots, "sequences that run at once")
          ->check(CLI::Range(1, 256))
          ->capture_default_str(),
      serve->add_option("--ubatch", options->ubatch, "rows of one step, chunks of prompts")
          ->check(CLI::Range(16, 8192)),
      serve->add_option("--thinking", options->thinking, "unless a request says otherwise")
          ->check(CLI::IsMember({"off", "on"}))
          ->capture_default_str()};
  for (CLI::Option* option : rest) option->needs(model);
  serve->callback([topology, model] {
    if (topology->count() + model->count() == 0) {
      throw CLI::RequiredError("a topology file, or --model FILE,");
    }
  });
  return serve;
}

CLI::App* AddTokenize(CLI::App* app, TokenizeOptions* options) {
  CLI::App* tokenize = app->add_subcommand("tokenize", "show the token ids of a text");
  tokenize->add_option("--model", options->model_path, "GGUF file")->required();
  tokenize
      ->add_option_function<std::string>(
          "text",
          [options](const std::string& text) {
            options->text = text;
            options->has_text = true;
          },
          "text; without it, standard input")
      ->type_name("TEXT");
  tokenize->add_flag("--add-special", options->add_special, "add BOS/EOS where the file says so");
  tokenize->add_flag("--parse-special", options->parse_special, "control tokens match in the text");
  tokenize->add_flag("--ids", options->ids_only, "ids alone, in one line");
  return tokenize;
}

int Main(int argc, char** argv) {
  CLI::App app("Serves large language models over the devices you own.", "packtrain");
  app.require_subcommand(1);
  ServeOptions serve_options;
  ChatOptions chat_options;
  TokenizeOptions tokenize_options;
  const CLI::App* serve = AddServe(&app, &serve_options);
  const CLI::App* chat = AddChat(&app, &chat_options);
  const CLI::App* tokenize = AddTokenize(&app, &tokenize_options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
      std::fprintf(stderr, "packtrain: there is no command \"%s\"; packtrain --help lists them\n",
                   argv[1]);
      return kUsageError;
    }
    std::fprintf(stderr, "packtrain: %s\n", error.what());
    return kUsageError;
  }
  absl::Status status;
  if (serve->parsed()) status = RunServe(serve_options);
  if (chat->parsed()) status = RunChat(chat_options);
  if (tokenize->parsed()) status = RunTokenize(tokenize_options);
  if (status.ok()) return EXIT_SUCCESS;
  std::fprintf(stderr, "packtrain: %s\n", std::string(status.message()).c_str());
  return EXIT_FAILURE;
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) { return packtrain::Main(argc, argv); }
