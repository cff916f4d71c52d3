#pragma once

// Chat templates: the Jinja text that a model brings along, rendered by the reference Jinja2 in its
// sandbox. Templates are hostile input, so rendering happens in one warm child process
// (`python3 -I`) with limits on memory, time and descriptors; past its deadline the child is killed
// and a new one started.

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace packtrain {

struct TemplateHostOptions {
  // Empty: $PACKTRAIN_PYTHON, else every python3 of $PATH in order, then /usr/bin/python3; the
  // first that can import jinja2 is taken.
  std::string python;
  std::chrono::milliseconds render_deadline{2000};  // per rendering
  std::chrono::milliseconds start_deadline{20000};  // for the interpreter to come up
  size_t memory_bytes_max = size_t{512} << 20;      // address space of the child
  size_t output_bytes_max = size_t{16} << 20;       // of one rendered prompt
};

// Owns the child process; one for all deployments. Thread-safe; renderings take turns.
class TemplateHost {
 public:
  // Starts nothing yet: the child comes up with the first use, so that a missing interpreter costs
  // chat templates only.
  static std::unique_ptr<TemplateHost> Create(TemplateHostOptions options);
  virtual ~TemplateHost() = default;

  // Renders `template_text` with the variables of the JSON object `variables_json`.
  // Errors: INVALID_ARGUMENT (the template does not compile, fails, raises or reaches outside its
  // sandbox; or bad JSON), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (memory or output),
  // FAILED_PRECONDITION (no interpreter with Jinja2), UNAVAILABLE (the child died).
  // Cost: a compiled template is cached; 64 KB of messages take a few milliseconds.
  virtual absl::StatusOr<std::string> Render(std::string_view template_text,
                                             std::string_view variables_json) = 0;
  // Process id of the child, 0 if none runs; for tests.
  virtual int child_pid() const = 0;
};

// One model's template. Immutable; any thread may use it.
class ChatTemplate {
 public:
  // `bos` and `eos`: text of the model's tokens, for the variables bos_token and eos_token.
  // `host` must outlive it.
  ChatTemplate(std::string text, std::string bos, std::string eos, TemplateHost* host);

  // `variables_json`: an object with messages, and as wanted tools, add_generation_prompt,
  // enable_thinking and whatever else the request passes; bos_token and eos_token are added.
  // Errors as TemplateHost::Render.
  absl::StatusOr<std::string> Render(std::string_view variables_json) const;

  // Compiles the template and renders a one-line conversation, so that a broken template is
  // reported at start.
  absl::Status Check() const;

  // Whether the template knows a switch for thinking (enable_thinking or thinking).
  bool SupportsThinkingSwitch() const { return supports_thinking_switch_; }
  bool SupportsReasoningEffort() const { return supports_reasoning_effort_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::string bos_;
  std::string eos_;
  TemplateHost* host_;
  bool supports_thinking_switch_;
  bool supports_reasoning_effort_;
};

}  // namespace packtrain
