#include "common/base/bus_error.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace packtrain {
namespace {

void Exit(int) {
  constexpr std::string_view kLine =
      "packtrain: a file that is in use was shortened, or cannot be read any more\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kLine.data(), kLine.size());
  _exit(EXIT_FAILURE);
}

}  // namespace

void ExitOnBusError() {
  struct sigaction action = {};
  action.sa_handler = Exit;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace packtrain
