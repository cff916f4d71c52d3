#include "worker/ops/thread_pool.h"

#include <algorithm>

namespace packtrain {

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) num_threads = static_cast<int>(std::thread::hardware_concurrency());
  num_threads = std::max(num_threads, 1);
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { RunThread(i); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
  }
  work_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int count, absl::FunctionRef<void(int, int)> task) {
  if (count <= 0) return;
  if (count == 1 || threads_.empty()) {
    for (int i = 0; i < count; ++i) task(i, 0);
    return;
  }
  {
    MutexLock lock(&mutex_);
    next_.store(0, std::memory_order_relaxed);
    task_ = &task;
    count_ = count;
    running_ = static_cast<int>(threads_.size());
    ++round_;
  }
  work_.NotifyAll();
  RunTasks(task, count, 0);
  MutexLock lock(&mutex_);
  while (running_ > 0) done_.Wait(&mutex_);
  task_ = nullptr;
}

void ThreadPool::RunTasks(absl::FunctionRef<void(int, int)> task, int count, int thread) {
  for (;;) {
    const int i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count) return;
    task(i, thread);
  }
}

void ThreadPool::RunThread(int thread) {
  uint64_t seen = 0;
  for (;;) {
    const absl::FunctionRef<void(int, int)>* task = nullptr;
    int count = 0;
    {
      MutexLock lock(&mutex_);
      while (!stop_ && round_ == seen) work_.Wait(&mutex_);
      if (stop_) return;
      seen = round_;
      task = task_;
      count = count_;
    }
    RunTasks(*task, count, thread);
    MutexLock lock(&mutex_);
    if (--running_ == 0) done_.NotifyOne();
  }
}

}  // namespace packtrain
