#pragma once

// The logical KV pages of one deployment: a page id is valid on all stages at once. Counts who uses
// a page: sequences and steps in flight are users; the prefix cache may hold it besides. A page
// is free when nobody does. Not thread-safe; the scheduler owns it.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace packtrain {

class PagePool {
 public:
  explicit PagePool(int num_pages);

  // A free page with one user, or -1.
  int32_t Allocate();
  void AddUser(int32_t page);
  void RemoveUser(int32_t page);
  // Whether the prefix cache holds the page.
  void SetCached(int32_t page, bool cached);

  int users(int32_t page) const { return pages_[static_cast<size_t>(page)].users; }
  bool cached(int32_t page) const { return pages_[static_cast<size_t>(page)].cached; }
  int size() const { return static_cast<int>(pages_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }
  // Pages that only the prefix cache holds: they can be had by evicting.
  int num_idle() const { return num_idle_; }
  int num_available() const { return num_free() + num_idle_; }

 private:
  struct Page {
    int users = 0;
    bool cached = false;
  };
  std::vector<Page> pages_;
  std::vector<int32_t> free_;
  int num_idle_ = 0;
};

}  // namespace packtrain
