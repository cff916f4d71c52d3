#pragma once

// Attention of one query row over cached keys and values, in absolute blocks of 64 positions.

#include <cstdint>
#include <span>
#include <vector>

#include "worker/kv_cache/paged_rows.h"

namespace packtrain {

// Blocks are visited in ascending order and within a block positions one by one, so the result
// depends on the query and the cache alone.
class Attention {
 public:
  struct Query {
    const float* q = nullptr;  // [heads, keys.dim], all of the same KV head
    int heads = 0;
    int kv_head = 0;
    float scale = 1;
    std::span<const int32_t> pages;  // page table of the sequence
    int32_t num_positions = 0;       // 0 .. num_positions - 1 are visible ...
    // ... or only these, ascending; nullptr: all.
    const int32_t* selected = nullptr;
    int num_selected = 0;
    const PagedRows* keys = nullptr;
    const PagedRows* values = nullptr;  // nullptr: the first value_dim elements of the keys
    int value_dim = 0;
    float* out = nullptr;  // [heads, value_dim]
  };

  // One thread at a time; scratch is kept.
  void Run(const Query& query);

 private:
  // Keys and values of up to 64 positions in f32; returns their number and advances `next`, an
  // index into the positions or into the selection.
  int LoadBlock(const Query& query, int* next);
  void AddBlock(const Query& query, int count, int head);

  std::vector<float> keys_, values_, scores_;
  std::vector<float> max_, sum_;  // per head
};

}  // namespace packtrain
