#pragma once

// For the asynchronous side of gRPC: one thread takes all that happens on a connection, so that a
// message wakes nobody but who reads it. (The synchronous side has several threads wait for the
// same descriptors.)

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <utility>

#include "common/base/mutex.h"

namespace packtrain {

// The tag of an operation: called with whether it succeeded. Must live until then.
using Completion = std::function<void(bool ok)>;

// Calls completions until the queue has been shut down and is empty.
inline void RunCompletions(grpc::CompletionQueue* queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) (*static_cast<Completion*>(tag))(ok);
}

// Writes messages to a stream in the order of Send, one at a time as gRPC demands.
template <typename Stream, typename Message>
class StreamWriter {
 public:
  // `stream` is borrowed; lives until Close has called back.
  explicit StreamWriter(Stream* stream) : stream_(stream) {}
  StreamWriter(const StreamWriter&) = delete;
  StreamWriter& operator=(const StreamWriter&) = delete;

  // Any thread; does not wait. False, and nothing is sent, once the stream is broken or closed.
  bool Send(const Message& message) {
    MutexLock lock(&mutex_);
    if (broken_ || closed_ != nullptr) return false;
    if (writing_) {
      waiting_.push_back(message);
    } else {
      Write(message);
    }
    return true;
  }

  // Once: nothing is sent any more but what Send has taken. `closed` is called when that is through
  // or lost, here or by the thread that runs the completions.
  void Close(std::function<void()> closed) {
    {
      MutexLock lock(&mutex_);
      if (writing_) {
        closed_ = std::move(closed);
        return;
      }
      closed_ = [] {};
    }
    closed();
  }

 private:
  void Write(const Message& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    writing_ = true;
    stream_->Write(message, &written_);
  }

  void OnWritten(bool ok) {
    std::function<void()> closed;
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) {
        broken_ = true;
        waiting_.clear();
      }
      if (!waiting_.empty()) {
        Write(waiting_.front());
        waiting_.pop_front();
        return;
      }
      closed = closed_;
    }
    if (closed != nullptr) closed();
  }

  Stream* const stream_;
  Completion written_ = [this](bool ok) { OnWritten(ok); };
  Mutex mutex_;
  std::deque<Message> waiting_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> closed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace packtrain
