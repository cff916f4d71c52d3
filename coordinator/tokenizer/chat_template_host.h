#pragma once

// Renders Jinja templates in the reference Jinja2 and its sandbox. Templates are hostile input, so
// this happens in a warm child process (`python3 -I`, no environment, no network where the kernel
// allows that) with limits on memory, time and descriptors; past its deadline the child is killed.
// A second child comes up when a rendering is wanted while the first is busy, so that one template
// which loops holds nobody up.

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace packtrain {

struct ChatTemplateHostOptions {
  // Empty: $PACKTRAIN_PYTHON; if that is empty too, /usr/bin/python3, then each python3 of $PATH.
  // The first that can import jinja2 is taken.
  std::string python = {};
  std::chrono::milliseconds render_deadline{2000};  // per rendering
  std::chrono::milliseconds start_deadline{20000};  // for the interpreter to come up
  size_t memory_bytes_max = size_t{512} << 20;      // address space of the child
  size_t output_chars_max = size_t{16} << 20;       // of one rendered text
};

// Owns the children; each model has a host of its own. Thread-safe.
class ChatTemplateHost {
 public:
  // At most so many renderings at once; more wait for their turn.
  static constexpr int kChildrenMax = 2;

  // Starts nothing yet: a child comes up with the first use, so that a missing interpreter costs
  // chat templates only.
  static std::unique_ptr<ChatTemplateHost> Create(ChatTemplateHostOptions options = {});
  virtual ~ChatTemplateHost() = default;

  // Renders `template_text` with the variables of the JSON object `variables_json`.
  // Errors: INVALID_ARGUMENT (the template does not compile, fails, raises or reaches outside its
  // sandbox), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (memory or output), FAILED_PRECONDITION (no
  // interpreter with Jinja2), UNAVAILABLE (the child died).
  // Cost: compiled templates are cached; a chat of 64 KB takes 0.3 to 3 ms (bench_chat_template).
  virtual absl::StatusOr<std::string> Render(std::string_view template_text,
                                             std::string_view variables_json) = 0;
  // Process id of the child that the next rendering will use; 0 if it has to start one.
  virtual int idle_child_pid() const = 0;
};

}  // namespace packtrain
