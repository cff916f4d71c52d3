#pragma once

// Which KV pages hold which token ids: a tree whose nodes are pages, each labelled with the ids
// whose keys and values it holds. A node with kPagePositions ids may have children; a shorter one
// is the tail of a sequence. Recurrent models also keep snapshots of their state here, each at
// one position of one node. What nobody uses is evicted, least recently used first.
//
// Not thread-safe; the scheduler owns it. Steps take effect in order on every stage and a failed
// step empties the cache, so a page may be entered as soon as the step that fills it was sent.

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/model/token.h"
#include "coordinator/scheduler/page_pool.h"

namespace packtrain {

// How much of a prompt is there already.
struct PrefixMatch {
  int length = 0;              // positions that need not be computed
  std::vector<int32_t> pages;  // the full pages among them, shared as they are
  int32_t copy_from = -1;      // the page to copy for the last length % kPagePositions of them
  int32_t snapshot = -1;       // recurrent models: the state after `length` tokens
};

class PrefixCache {
 public:
  // num_snapshots > 0: the model is recurrent and a prefix ends at a snapshot. `pool` is borrowed.
  PrefixCache(PagePool* pool, int num_snapshots);

  // The longest prefix of `ids` not beyond `length_max`. Takes no reference: the caller adds users
  // before anything else happens. Cost: ids.size() comparisons, about.
  PrefixMatch Match(std::span<const TokenId> ids, int length_max);

  // Enters the pages of a sequence; page i holds ids [64 i, 64 i + 64). The caller stays a user of
  // its pages. Stops at the first page whose ids another page holds already.
  void Insert(std::span<const TokenId> ids, std::span<const int32_t> pages);

  // A page with one user, evicting if need be; -1: all are in use.
  int32_t AllocatePage();

  // A snapshot that the caller owns, evicting if need be; -1: none to be had.
  int32_t AllocateSnapshot();
  void ReleaseSnapshot(int32_t snapshot);  // owned by the caller
  // Gives an owned snapshot, the state after `ids`, to the cache; frees it if `ids` are not there
  // or have one.
  void AttachSnapshot(std::span<const TokenId> ids, int32_t snapshot);
  // A pinned snapshot is not evicted: a step in flight reads or writes it.
  void PinSnapshot(int32_t snapshot) { ++snapshots_[static_cast<size_t>(snapshot)].pins; }
  void UnpinSnapshot(int32_t snapshot);

  int num_snapshots_unattached() const;
  // Whether tree, pages and snapshots agree with each other.
  absl::Status CheckIntegrity() const;

 private:
  using Label = std::vector<TokenId>;
  static constexpr int32_t kRoot = -1;

  struct Node {
    bool in_tree = false;
    int32_t parent = kRoot;
    uint64_t last_used = 0;
    std::map<Label, int32_t> children;        // label of the child -> its page
    std::map<int, int32_t> snapshots;         // positions into the page, 1 .. 64 -> snapshot
    std::map<Label, int32_t>::iterator self;  // in the parent's children
  };
  struct Snapshot {
    enum class State : uint8_t { kFree, kOwned, kAttached } state = State::kFree;
    int32_t page = -1;  // attached: the node
    int position = 0;   // and the position into it
    int pins = 0;
    uint64_t last_used = 0;
  };
  // The best place found so far by Match.
  struct Candidate {
    int length = 0;
    size_t full_pages = 0;
    int32_t page = -1;  // holds the rest, -1 if length ends with a page
    int32_t snapshot = -1;
  };

  std::map<Label, int32_t>& ChildrenOf(int32_t page) {
    return page == kRoot ? root_children_ : nodes_[static_cast<size_t>(page)].children;
  }
  Node& node(int32_t page) { return nodes_[static_cast<size_t>(page)]; }
  const Node& node(int32_t page) const { return nodes_[static_cast<size_t>(page)]; }
  void Touch(int32_t page);
  void Link(int32_t parent, Label label, int32_t page);
  void Unlink(int32_t page);
  void MoveSnapshots(int32_t from, int32_t to);
  int32_t EnterPage(int32_t parent, Label label, int32_t page);
  bool EvictPage();
  void ConsiderPartial(int32_t parent, std::span<const TokenId> rest, int length_max, int depth,
                       Candidate* best);

  PagePool* pool_;
  bool recurrent_;
  uint64_t clock_ = 0;
  std::vector<Node> nodes_;  // by page
  std::map<Label, int32_t> root_children_;
  std::set<std::pair<uint64_t, int32_t>> leaves_;  // (last_used, page) of nodes without children
  std::vector<Snapshot> snapshots_;
};

}  // namespace packtrain
