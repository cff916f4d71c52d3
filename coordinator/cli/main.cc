// packtrain's sub-commands.

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/bus_error.h"
#include "coordinator/cli/bench_command.h"
#include "coordinator/cli/chat_command.h"
#include "coordinator/cli/doctor_command.h"
#include "coordinator/cli/plan_command.h"
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
  CLI::Option* model = AddServedModel(serve, options);
  for (CLI::Option* option :
       {serve->add_option("--host", options->host, "address to listen on")->capture_default_str(),
        serve->add_option("--port", options->port, "port to listen on, 0 for a free one")
            ->check(CLI::Range(0, 65535))
            ->capture_default_str(),
        serve->add_option("--thinking", options->thinking, "unless a request says otherwise")
            ->check(CLI::IsMember({"off", "on"}))
            ->capture_default_str()}) {
    option->needs(model);
  }
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
  ExitOnBusError();
  // Standard output is for what a command has to say.
  spdlog::set_default_logger(spdlog::stderr_color_mt("packtrain"));
  CLI::App app("Serves large language models over the devices you own.", "packtrain");
  app.require_subcommand(1);
  ServeOptions serve_options;
  ChatOptions chat_options;
  TokenizeOptions tokenize_options;
  const CLI::App* serve = AddServe(&app, &serve_options);
  const CLI::App* chat = AddChat(&app, &chat_options);
  const CLI::App* tokenize = AddTokenize(&app, &tokenize_options);
  PlanOptions plan_options;
  const CLI::App* plan = AddPlan(&app, &plan_options);
  DoctorOptions doctor_options;
  const CLI::App* doctor = AddDoctor(&app, &doctor_options);
  BenchOptions bench_options;
  const CLI::App* bench = AddBench(&app, &bench_options);
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
  if (plan->parsed()) status = RunPlan(plan_options);
  if (doctor->parsed()) status = RunDoctor(doctor_options);
  if (bench->parsed()) status = RunBench(bench_options);
  if (status.ok()) return EXIT_SUCCESS;
  std::fprintf(stderr, "packtrain: %s\n", std::string(status.message()).c_str());
  return EXIT_FAILURE;
}

}  // namespace
}  // namespace packtrain

int main(int argc, char** argv) { return packtrain::Main(argc, argv); }
