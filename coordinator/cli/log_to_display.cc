#include "coordinator/cli/log_to_display.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>

namespace packtrain {
namespace {

class DisplaySink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit DisplaySink(LoadDisplay* display) : display_(display) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    display_->Print(std::string(line.data(), line.size() - 1));  // without its newline
  }
  void flush_() override {}

  LoadDisplay* const display_;
};

}  // namespace

LogToDisplay::LogToDisplay(LoadDisplay* display) {
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("", std::make_shared<DisplaySink>(display)));
}

LogToDisplay::~LogToDisplay() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("")); }

}  // namespace packtrain
