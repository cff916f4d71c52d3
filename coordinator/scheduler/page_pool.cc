#include "coordinator/scheduler/page_pool.h"

#include "common/base/check.h"

namespace packtrain {

PagePool::PagePool(int num_pages) : pages_(static_cast<size_t>(num_pages)) {
  free_.reserve(pages_.size());
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::Allocate() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  pages_[static_cast<size_t>(page)].users = 1;
  return page;
}

void PagePool::AddUser(int32_t page) {
  Page& p = pages_[static_cast<size_t>(page)];
  CHECK_MSG(p.users > 0 || p.cached, "a free page gets a user without being allocated");
  if (p.users++ == 0) --num_idle_;
}

void PagePool::RemoveUser(int32_t page) {
  Page& p = pages_[static_cast<size_t>(page)];
  CHECK_MSG(p.users > 0, "a page is released twice");
  if (--p.users > 0) return;
  if (p.cached) {
    ++num_idle_;
  } else {
    free_.push_back(page);
  }
}

void PagePool::SetCached(int32_t page, bool cached) {
  Page& p = pages_[static_cast<size_t>(page)];
  CHECK(p.cached != cached);
  p.cached = cached;
  if (p.users > 0) return;
  CHECK_MSG(!cached, "a free page enters the prefix cache");
  --num_idle_;
  free_.push_back(page);
}

}  // namespace packtrain
