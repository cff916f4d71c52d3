#pragma once

// Cached vectors of one kind in one layer: for each page of 64 positions and each head the rows of
// that head, stored in the cache's type.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/model/kv_layout.h"
#include "common/model/step.h"
#include "common/quant/codec.h"

namespace packtrain {

class PagedRows {
 public:
  PagedRows() = default;
  // Rows of `dim` values, zero. All memory is taken at once: 0.3 s a GB.
  PagedRows(KvCacheType type, int num_pages, int heads, int dim);

  int dim() const { return static_cast<int>(dim_); }
  uint64_t bytes() const { return page_bytes_ * num_pages_; }

  // Stores row [dim], rounded to the type.
  void Write(int32_t page, int offset, int head, const float* row);

  // Decode or a faster one that gives the same bits.
  using DecodeFunction = void (*)(TensorType type, const void* blocks, size_t count, float* values);

  // Rows offset .. offset + count of a page, converted into out [count, dim].
  void Read(int32_t page, int offset, int count, int head, float* out,
            DecodeFunction decode = Decode) const;

  void CopyPage(int32_t from, int32_t to);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* p) const;
  };
  std::byte* Row(int32_t page, int offset, int head) const;

  KvCacheType type_ = KvCacheType::kF32;
  size_t num_pages_ = 0, heads_ = 0, dim_ = 0;
  size_t row_bytes_ = 0, page_bytes_ = 0;
  std::unique_ptr<std::byte, Unmap> memory_;
};

}  // namespace packtrain
