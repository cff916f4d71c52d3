#include "coordinator/scheduler/prefix_cache.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/model/step.h"

namespace packtrain {
namespace {

// Copying a page moves 64 positions through every stage; for fewer shared ones computing them with
// the rest of the prompt is as good.
constexpr int kMinCopyPositions = 16;

int CommonPrefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const size_t length_max = std::min(a.size(), b.size());
  size_t length = 0;
  while (length < length_max && a[length] == b[length]) ++length;
  return static_cast<int>(length);
}

std::vector<TokenId> FirstPage(std::span<const TokenId> ids) {
  const size_t length = std::min<size_t>(ids.size(), kPagePositions);
  return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(length)};
}

}  // namespace

PrefixCache::PrefixCache(PagePool* pool, int num_snapshots)
    : pool_(pool),
      recurrent_(num_snapshots > 0),
      nodes_(static_cast<size_t>(pool->size())),
      snapshots_(static_cast<size_t>(num_snapshots)) {}

void PrefixCache::Touch(int32_t page) {
  Node& n = node(page);
  if (n.children.empty()) {
    leaves_.erase({n.last_used, page});
    leaves_.insert({clock_, page});
  }
  n.last_used = clock_;
}

// Children of `parent` that share a beginning with `rest` lie around its place in label order, the
// more they share the nearer.
void PrefixCache::ConsiderPartial(int32_t parent, std::span<const TokenId> rest, int length_max,
                                  int depth, Candidate* best) {
  std::map<Label, int32_t>& children = ChildrenOf(parent);
  const auto consider = [&](const Label& label, int32_t page) {
    const int shared = CommonPrefix(label, rest);
    if (!recurrent_) {
      const int usable = std::min(shared, length_max - depth);
      if (usable >= kMinCopyPositions && depth + usable > best->length) {
        *best = {depth + usable, static_cast<size_t>(depth / kPagePositions), page, -1};
      }
      return false;  // those further away share no more
    }
    for (const auto& [position, snapshot] : node(page).snapshots) {
      const int length = depth + position;
      if (position > shared || length > length_max) break;
      if (length <= best->length) continue;
      const bool full = position == kPagePositions;
      *best = {length, static_cast<size_t>(length / kPagePositions), full ? -1 : page, snapshot};
    }
    return shared > 0;
  };
  const auto middle = children.lower_bound(FirstPage(rest));
  for (auto it = middle; it != children.end(); ++it) {
    if (!consider(it->first, it->second)) break;
  }
  for (auto it = middle; it != children.begin();) {
    --it;
    if (!consider(it->first, it->second)) break;
  }
}

PrefixMatch PrefixCache::Match(std::span<const TokenId> ids, int length_max) {
  ++clock_;
  length_max = std::min(length_max, static_cast<int>(ids.size()));
  std::vector<int32_t> path;
  Candidate best;
  int32_t parent = kRoot;
  for (int depth = 0;; depth += kPagePositions) {
    const std::span<const TokenId> rest = ids.subspan(static_cast<size_t>(depth));
    // Only a recurrent model can end in a side branch higher up than the path goes.
    if (recurrent_) ConsiderPartial(parent, rest, length_max, depth, &best);
    std::map<Label, int32_t>& children = ChildrenOf(parent);
    const auto child =
        depth + kPagePositions <= length_max ? children.find(FirstPage(rest)) : children.end();
    if (child == children.end()) {
      if (!recurrent_) {
        best = {depth, path.size(), -1, -1};
        ConsiderPartial(parent, rest, length_max, depth, &best);
      }
      break;
    }
    parent = child->second;
    path.push_back(parent);
  }
  PrefixMatch match;
  match.length = best.length;
  match.copy_from = best.page;
  match.snapshot = best.snapshot;
  // A snapshot at the end of a page may have been found before the path went through that page;
  // the label was compared in full, so the path did.
  CHECK(best.full_pages <= path.size());
  match.pages.assign(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(best.full_pages));
  for (int32_t page : match.pages) Touch(page);
  if (match.copy_from >= 0) Touch(match.copy_from);
  if (match.snapshot >= 0) snapshots_[static_cast<size_t>(match.snapshot)].last_used = clock_;
  return match;
}

void PrefixCache::Link(int32_t parent, Label label, int32_t page) {
  if (parent != kRoot && node(parent).children.empty()) {
    leaves_.erase({node(parent).last_used, parent});
  }
  Node& n = node(page);
  CHECK(!n.in_tree);
  n.in_tree = true;
  n.parent = parent;
  n.last_used = clock_;
  n.self = ChildrenOf(parent).emplace(std::move(label), page).first;
  leaves_.insert({n.last_used, page});
  pool_->SetCached(page, true);
}

void PrefixCache::Unlink(int32_t page) {
  Node& n = node(page);
  CHECK(n.in_tree && n.children.empty());
  for (const auto& [position, snapshot] : n.snapshots) {
    snapshots_[static_cast<size_t>(snapshot)].state = Snapshot::State::kOwned;
    ReleaseSnapshot(snapshot);
  }
  n.snapshots.clear();
  leaves_.erase({n.last_used, page});
  ChildrenOf(n.parent).erase(n.self);
  if (n.parent != kRoot && node(n.parent).children.empty()) {
    leaves_.insert({node(n.parent).last_used, n.parent});
  }
  n.in_tree = false;
  pool_->SetCached(page, false);
}

void PrefixCache::MoveSnapshots(int32_t from, int32_t to) {
  Node& source = node(from);
  for (auto it = source.snapshots.begin(); it != source.snapshots.end();) {
    if (node(to).snapshots.contains(it->first)) {
      ++it;
      continue;
    }
    node(to).snapshots.insert(*it);
    snapshots_[static_cast<size_t>(it->second)].page = to;
    it = source.snapshots.erase(it);
  }
}

// Enters one page under `parent`; the node that now holds `label`.
int32_t PrefixCache::EnterPage(int32_t parent, Label label, int32_t page) {
  std::map<Label, int32_t>& children = ChildrenOf(parent);
  const auto holds_label = [&](const std::map<Label, int32_t>::iterator& it) {
    return it != children.end() && CommonPrefix(it->first, label) == static_cast<int>(label.size());
  };
  const auto found = children.lower_bound(label);
  if (holds_label(found)) {
    const int32_t holder = found->second;
    if (holder != page && node(page).in_tree && node(page).children.empty()) {
      // This page was entered when it held less; somebody else filled the same ids in meanwhile.
      MoveSnapshots(page, holder);
      Unlink(page);
    }
    return holder;
  }
  Node& n = node(page);
  if (n.in_tree) {  // the tail of a sequence that has grown
    CHECK(n.parent == parent && n.children.empty());
    auto handle = children.extract(n.self);
    handle.key() = std::move(label);
    n.self = children.insert(std::move(handle)).position;
  } else {
    Link(parent, std::move(label), page);
  }
  return page;
}

void PrefixCache::Insert(std::span<const TokenId> ids, std::span<const int32_t> pages) {
  ++clock_;
  int32_t parent = kRoot;
  for (size_t first = 0; first < ids.size(); first += kPagePositions) {
    const int32_t page = pages[first / kPagePositions];
    parent = EnterPage(parent, FirstPage(ids.subspan(first)), page);
    Touch(parent);
    // Somebody else's page holds the same. What follows stays private: below a page that this
    // sequence does not use it would keep that page from being evicted.
    if (parent != page) return;
  }
}

bool PrefixCache::EvictPage() {
  for (const auto& [last_used, page] : leaves_) {
    if (pool_->users(page) > 0) continue;
    const std::map<int, int32_t>& snapshots = node(page).snapshots;
    const bool pinned = std::any_of(snapshots.begin(), snapshots.end(), [&](const auto& entry) {
      return snapshots_[static_cast<size_t>(entry.second)].pins > 0;
    });
    if (pinned) continue;
    Unlink(page);
    return true;
  }
  return false;
}

int32_t PrefixCache::AllocatePage() {
  if (pool_->num_free() == 0 && !EvictPage()) return -1;
  return pool_->Allocate();
}

int32_t PrefixCache::AllocateSnapshot() {
  ++clock_;
  int32_t oldest = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(snapshots_.size()); ++i) {
    Snapshot& s = snapshots_[static_cast<size_t>(i)];
    if (s.pins > 0 || s.state == Snapshot::State::kOwned) continue;
    if (s.state == Snapshot::State::kFree) {
      s.state = Snapshot::State::kOwned;
      return i;
    }
    if (oldest < 0 || s.last_used < snapshots_[static_cast<size_t>(oldest)].last_used) oldest = i;
  }
  if (oldest < 0) return -1;
  Snapshot& s = snapshots_[static_cast<size_t>(oldest)];
  node(s.page).snapshots.erase(s.position);
  s.state = Snapshot::State::kOwned;
  return oldest;
}

void PrefixCache::ReleaseSnapshot(int32_t snapshot) {
  Snapshot& s = snapshots_[static_cast<size_t>(snapshot)];
  CHECK(s.state == Snapshot::State::kOwned);
  s.state = Snapshot::State::kFree;
}

void PrefixCache::AttachSnapshot(std::span<const TokenId> ids, int32_t snapshot) {
  ++clock_;
  const size_t last_page = (ids.size() - 1) / kPagePositions;
  int32_t parent = kRoot;
  for (size_t i = 0; i < last_page; ++i) {
    const auto child = ChildrenOf(parent).find(FirstPage(ids.subspan(i * kPagePositions)));
    if (child == ChildrenOf(parent).end()) return ReleaseSnapshot(snapshot);
    parent = child->second;
  }
  const Label rest = FirstPage(ids.subspan(last_page * kPagePositions));
  const auto holder = ChildrenOf(parent).lower_bound(rest);
  if (holder == ChildrenOf(parent).end() ||
      CommonPrefix(holder->first, rest) < static_cast<int>(rest.size())) {
    return ReleaseSnapshot(snapshot);
  }
  const int position = static_cast<int>(rest.size());
  if (!node(holder->second).snapshots.emplace(position, snapshot).second) {
    ReleaseSnapshot(snapshot);
    return;
  }
  Snapshot& s = snapshots_[static_cast<size_t>(snapshot)];
  s.state = Snapshot::State::kAttached;
  s.page = holder->second;
  s.position = position;
  s.last_used = clock_;
}

void PrefixCache::UnpinSnapshot(int32_t snapshot) {
  Snapshot& s = snapshots_[static_cast<size_t>(snapshot)];
  CHECK(s.pins > 0);
  --s.pins;
}

int PrefixCache::num_snapshots_unattached() const {
  return static_cast<int>(std::count_if(snapshots_.begin(), snapshots_.end(), [](const auto& s) {
    return s.state == Snapshot::State::kOwned;
  }));
}

absl::Status PrefixCache::CheckIntegrity() const {
  size_t leaves = 0;
  size_t attached = 0;
  for (int32_t page = 0; page < pool_->size(); ++page) {
    const Node& n = node(page);
    if (n.in_tree != pool_->cached(page)) {
      return absl::InternalError(absl::StrFormat("page %d: tree and pool disagree", page));
    }
    if (!n.in_tree) {
      if (!n.children.empty() || !n.snapshots.empty()) {
        return absl::InternalError(absl::StrFormat("page %d: outside the tree, not empty", page));
      }
      continue;
    }
    if (n.children.empty() != leaves_.contains({n.last_used, page})) {
      return absl::InternalError(absl::StrFormat("page %d: the list of leaves is wrong", page));
    }
    leaves += n.children.empty() ? 1 : 0;
    if (n.parent != kRoot && !node(n.parent).in_tree) {
      return absl::InternalError(absl::StrFormat("page %d: its parent left the tree", page));
    }
    if (n.parent != kRoot && pool_->users(page) > 0 && pool_->users(n.parent) == 0) {
      return absl::InternalError(absl::StrFormat("page %d: in use below one that is not", page));
    }
    for (const auto& [position, snapshot] : n.snapshots) {
      const Snapshot& s = snapshots_[static_cast<size_t>(snapshot)];
      if (s.state != Snapshot::State::kAttached || s.page != page || s.position != position) {
        return absl::InternalError(absl::StrFormat("snapshot %d: lost by its page", snapshot));
      }
      ++attached;
    }
  }
  if (leaves != leaves_.size()) return absl::InternalError("leaves outside the tree");
  for (const Snapshot& s : snapshots_) {
    attached -= s.state == Snapshot::State::kAttached ? 1 : 0;
  }
  if (attached != 0) return absl::InternalError("an attached snapshot belongs to no page");
  return absl::OkStatus();
}

}  // namespace packtrain
