#pragma once

// Threads for the part of a request that takes time, with a bound on what may wait for them.

#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <cstddef>
#include <functional>
#include <utility>

namespace packtrain {

class BoundedPool {
 public:
  // `requests_max` and `bytes_max` bound what waits or runs; one request alone may be of any size.
  BoundedPool(int threads, int requests_max, size_t bytes_max)
      : requests_max_(requests_max), bytes_max_(bytes_max), pool_(static_cast<size_t>(threads)) {}

  // Runs `work`, which holds `bytes`, on one of the threads. False if too much waits already; then
  // it never runs. Any thread.
  bool Post(size_t bytes, std::function<void()> work) {
    const int before = requests_.fetch_add(1);
    const size_t bytes_before = bytes_.fetch_add(bytes);
    if (before >= requests_max_ || (before > 0 && bytes_before + bytes > bytes_max_)) {
      Forget(bytes);
      return false;
    }
    boost::asio::post(pool_, [this, bytes, work = std::move(work)] {
      work();
      Forget(bytes);
    });
    return true;
  }

  // What has not begun never runs.
  void Stop() {
    pool_.stop();
    pool_.join();
  }

 private:
  void Forget(size_t bytes) {
    bytes_ -= bytes;
    --requests_;
  }

  const int requests_max_;
  const size_t bytes_max_;
  std::atomic<size_t> bytes_ = 0;
  std::atomic<int> requests_ = 0;
  boost::asio::thread_pool pool_;
};

}  // namespace packtrain
