#pragma once

// Attention of query rows over cached keys and values, in absolute blocks of 64 positions.

#include <cstdint>
#include <span>
#include <vector>

#include "worker/kernels/cpu/kernels.h"
#include "worker/kv_cache/paged_rows.h"

namespace packtrain {

// Blocks are visited in ascending order, each converted once for all rows and heads. What a row and
// head get depends on their query and the cache alone.
class Attention {
 public:
  struct Query {
    // Row r's heads, all of the same KV head, lie at q + r * q_stride: [heads, keys.dim].
    const float* q = nullptr;
    size_t q_stride = 0;
    int rows = 1;
    int heads = 0;
    int kv_head = 0;
    float scale = 1;
    std::span<const int32_t> pages;  // page table of the sequence
    // Row r sees positions 0 .. num_positions + r - 1 ...
    int32_t num_positions = 0;
    // ... or, of one row only, these, ascending; nullptr: all.
    const int32_t* selected = nullptr;
    int num_selected = 0;
    const PagedRows* keys = nullptr;
    const PagedRows* values = nullptr;  // nullptr: the first value_dim elements of the keys
    int value_dim = 0;
    float* out = nullptr;  // row r's at out + r * out_stride: [heads, value_dim]
    size_t out_stride = 0;
  };

  // One thread at a time; scratch is kept.
  void Run(const VectorOps& ops, const Query& query);

 private:
  // Keys and values of up to 64 positions in f32; returns their number and advances `next`, an
  // index into the positions or into the selection.
  int LoadBlock(const VectorOps& ops, const Query& query, int* next);
  // The first `count` of the loaded positions for rows [first, last).
  void AddBlock(const VectorOps& ops, const Query& query, int count, int first, int last);

  std::vector<float> keys_, values_, scores_;
  std::vector<float> queries_, results_;  // [rows, heads, ..]
  std::vector<float> max_, sum_;          // [rows, heads]
};

}  // namespace packtrain
