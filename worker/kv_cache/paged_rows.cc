#include "worker/kv_cache/paged_rows.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/quant/codec.h"

namespace packtrain {
namespace {

constexpr size_t kBlock = 32;  // values of a quantised block

TensorType StoredType(KvCacheType type) {
  switch (type) {
    case KvCacheType::kF32:
      return TensorType::kF32;
    case KvCacheType::kF16:
      return TensorType::kF16;
    case KvCacheType::kQ8_0:
      return TensorType::kQ8_0;
    case KvCacheType::kQ4_1:
      return TensorType::kQ4_1;
  }
  return TensorType::kF32;
}

}  // namespace

PagedRows::PagedRows(KvCacheType type, int num_pages, int heads, int dim)
    : type_(type),
      num_pages_(static_cast<size_t>(num_pages)),
      heads_(static_cast<size_t>(heads)),
      dim_(static_cast<size_t>(dim)),
      row_bytes_(KvBytes(type, dim_)),
      page_bytes_(row_bytes_ * kPagePositions * heads_) {
  if (bytes() == 0) return;
  void* p = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK_MSG(p != MAP_FAILED, "no address space for the KV cache");
  // The memory is there from now on: a caller that has billed it cannot run out of it later, when
  // others have taken theirs.
  if (madvise(p, bytes(), MADV_POPULATE_WRITE) != 0) std::memset(p, 0, bytes());
  memory_ = {static_cast<std::byte*>(p), Unmap{bytes()}};
}

void PagedRows::Unmap::operator()(std::byte* p) const { munmap(p, bytes); }

std::byte* PagedRows::Row(int32_t page, int offset, int head) const {
  CHECK(page >= 0 && static_cast<size_t>(page) < num_pages_ && offset >= 0 &&
        offset < kPagePositions && static_cast<size_t>(head) < heads_);
  const size_t row = static_cast<size_t>(head) * kPagePositions + static_cast<size_t>(offset);
  return memory_.get() + static_cast<size_t>(page) * page_bytes_ + row * row_bytes_;
}

void PagedRows::Write(int32_t page, int offset, int head, const float* row) {
  std::byte* out = Row(page, offset, head);
  if (type_ == KvCacheType::kF32) {
    std::memcpy(out, row, row_bytes_);
    return;
  }
  const TensorType type = StoredType(type_);
  if (type_ == KvCacheType::kF16) {
    Encode(type, row, dim_, out);
    return;
  }
  const size_t whole = dim_ / kBlock * kBlock;
  Encode(type, row, whole, out);
  if (whole == dim_) return;
  float last[kBlock];
  // The padding repeats a value, so that it does not widen the block's range.
  std::fill(std::copy(row + whole, row + dim_, last), last + kBlock, row[dim_ - 1]);
  Encode(type, last, kBlock, out + RowBytes(type, whole));
}

void PagedRows::Read(int32_t page, int offset, int count, int head, float* out,
                     DecodeFunction decode) const {
  const std::byte* row = Row(page, offset, head);
  CHECK(offset + count <= kPagePositions);
  if (type_ == KvCacheType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(count) * row_bytes_);
    return;
  }
  const TensorType type = StoredType(type_);
  if (type_ == KvCacheType::kF16 || dim_ % kBlock == 0) {
    decode(type, row, static_cast<size_t>(count) * dim_, out);
    return;
  }
  const size_t whole = dim_ / kBlock * kBlock;
  for (int i = 0; i < count; ++i, row += row_bytes_, out += dim_) {
    float last[kBlock];
    decode(type, row, whole, out);
    decode(type, row + RowBytes(type, whole), kBlock, last);
    std::copy(last, last + (dim_ - whole), out + whole);
  }
}

void PagedRows::CopyPage(int32_t from, int32_t to) {
  std::memcpy(Row(to, 0, 0), Row(from, 0, 0), page_bytes_);
}

}  // namespace packtrain
