#include "common/weights/segment.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/host_limits.h"
#include "common/base/huge_pages.h"
#include "common/base/status_macros.h"
#include "common/weights/direct_reader.h"
#include "common/weights/gguf.h"

namespace packtrain {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kPage = 4096;
// Of a finished segment: without those on its size a mapping could be made to fault.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

void AppendInteger(std::string* out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

void AppendString(std::string* out, const std::string& value) {
  AppendInteger(out, value.size(), 4);
  out->append(value);
}

// Which files these are: sizes, and a hash of all their metadata.
std::string Identity(const GgufFile& file) {
  std::string identity;
  for (const GgufFile::Shard& shard : file.shards()) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const std::byte b : shard.bytes.first(shard.data_offset)) {
      hash = (hash ^ static_cast<uint64_t>(b)) * 0x100000001b3;
    }
    absl::StrAppendFormat(&identity, "%d:%016x ", shard.bytes.size(), hash);
  }
  return identity;
}

// Bytes by name, as /proc/meminfo tells them; 0 if absent.
uint64_t MemInfo(const std::string& name, uint64_t unit) {
  std::ifstream in("/proc/meminfo");
  std::string key, rest;
  uint64_t value = 0;
  while (in >> key >> value && std::getline(in, rest)) {
    if (key == name + ":") return value * unit;
  }
  return 0;
}

absl::Status SystemError(const std::string& what) {
  return absl::ResourceExhaustedError(absl::StrFormat("%s: %s", what, std::strerror(errno)));
}

// A mapping that ends with the scope unless taken.
class Mapping {
 public:
  Mapping(int fd, uint64_t bytes, int protection)
      : data_(MapShared(fd, bytes, protection)), bytes_(bytes) {}
  ~Mapping() {
    if (valid()) munmap(data_, bytes_);
  }
  bool valid() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  void* Take() { return std::exchange(data_, MAP_FAILED); }

 private:
  void* data_;
  uint64_t bytes_;
};

// Asks for huge pages until there are no more; `progress` is called now and then, as nothing has
// been read. Returns the bytes that lie in them. Errors: CANCELLED by `progress`.
absl::StatusOr<uint64_t> TakePages(int fd, std::byte* data, uint64_t bytes,
                                   const SegmentFillOptions& options) {
  constexpr uint64_t kSlice = uint64_t{4} << 30;
  struct statfs fs {};
  if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC) return bytes;
  uint64_t taken = 0;
  for (uint64_t at = 0; at < bytes && taken == at; at += kSlice) {
    if (options.progress && !options.progress(0, bytes)) {
      return absl::CancelledError("filling the weight segment was cancelled");
    }
    taken += TakeHugePages(data + at, std::min(kSlice, bytes - at), options.threads);
  }
  return taken;
}

// Returns the share of it that lies in huge pages, "97 % huge".
absl::StatusOr<std::string> Fill(int fd, const GgufFile& file, const SegmentLayout& layout,
                                 const SegmentFillOptions& options) {
  const Mapping mapping(fd, layout.bytes, PROT_READ | PROT_WRITE);
  if (!mapping.valid()) return SystemError(absl::StrCat("mapping ", layout.bytes, " bytes"));
  ASSIGN_OR_RETURN(const uint64_t huge, TakePages(fd, mapping.data(), layout.bytes, options));
  std::vector<DirectRead> reads;
  for (const SegmentLayout::Entry& entry : layout.entries) {
    reads.push_back({entry.tensor->shard, entry.tensor->file_offset, entry.tensor->bytes,
                     mapping.data() + entry.offset});
  }
  std::vector<std::string> paths;
  for (const GgufFile::Shard& shard : file.shards()) paths.push_back(shard.path);
  RETURN_IF_ERROR(ReadDirect(paths, std::move(reads), options.threads, options.progress));
  std::memcpy(mapping.data(), layout.header.data(), layout.header.size());
  return absl::StrCat(100 * huge / layout.bytes, " % huge");
}

// Enters all pages in the page table, so that the first tokens do not pay for that. A wish only: a
// kernel that cannot leaves each page to its first use.
void Populate(std::byte* data, uint64_t bytes, int threads) {
  const uint64_t share = RoundUp(bytes / static_cast<uint64_t>(threads), kHugePageBytes);
  std::vector<std::thread> workers;
  for (uint64_t at = 0; at < bytes; at += share) {
    workers.emplace_back(
        [=] { madvise(data + at, std::min(share, bytes - at), MADV_POPULATE_READ); });
  }
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

SegmentLayout PlanSegment(const GgufFile& file, std::span<const GgufTensor* const> tensors) {
  SegmentLayout layout;
  std::string names;
  // Offsets depend on the header's size, which depends on the names only.
  const std::string identity = Identity(file);
  uint64_t header_bytes = 8 + 8 + 8 + 4 + 4 + 4 + identity.size() + 4;
  for (const GgufTensor* t : tensors) header_bytes += 4 + t->name.size() + 8 + 8;
  uint64_t offset = header_bytes;
  std::string table;
  for (const GgufTensor* t : tensors) {
    offset = RoundUp(offset, kAlignment);
    if (t->file_offset % kAlignment == 0) {
      offset += (t->file_offset % kPage + kPage - offset % kPage) % kPage;
    }
    layout.entries.push_back({t, offset});
    AppendString(&table, t->name);
    AppendInteger(&table, offset, 8);
    AppendInteger(&table, t->bytes, 8);
    offset += t->bytes;
  }
  layout.bytes = RoundUp(offset, kHugePageBytes);
  layout.header = "PTSEGM01";
  AppendInteger(&layout.header, header_bytes, 8);
  AppendInteger(&layout.header, layout.bytes, 8);
  AppendString(&layout.header, "gguf");
  AppendString(&layout.header, identity);
  AppendInteger(&layout.header, tensors.size(), 4);
  layout.header += table;
  return layout;
}

absl::StatusOr<std::vector<int>> CreateSegments(std::span<const uint64_t> bytes) {
  // Reserved huge pages are no part of what the host has available.
  uint64_t huge =
      MemInfo("HugePages_Free", kHugePageBytes) - MemInfo("HugePages_Rsvd", kHugePageBytes);
  std::vector<bool> use_huge;
  uint64_t ordinary = 0;
  for (const uint64_t size : bytes) {
    use_huge.push_back(size <= huge);
    if (use_huge.back()) {
      huge -= size;
    } else {
      ordinary += size;
    }
  }
  RETURN_IF_ERROR(CheckMemory(ReadMemoryLimits(""), ordinary, "weights in RAM"));
  std::vector<int> fds;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const unsigned flags = use_huge[i] ? MFD_HUGETLB | MFD_HUGE_2MB : 0U;
    fds.push_back(memfd_create("packtrain-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
    if (fds.back() >= 0 && ftruncate(fds.back(), static_cast<off_t>(bytes[i])) == 0) continue;
    const absl::Status status = SystemError(absl::StrCat("segment of ", bytes[i], " bytes"));
    for (const int fd : fds) close(fd);
    return status;
  }
  return fds;
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Open(int fd, const GgufFile& file,
                                                       const SegmentLayout& layout,
                                                       const SegmentFillOptions& options) {
  struct stat info {};
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || fstat(fd, &info) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("descriptor %d is no weight segment: %s", fd, std::strerror(errno)));
  }
  if (static_cast<uint64_t>(info.st_size) != layout.bytes) {
    return absl::FailedPreconditionError(absl::StrFormat("weight segment has %d bytes, %s needs %d",
                                                         info.st_size, file.path(), layout.bytes));
  }
  auto segment = std::unique_ptr<Segment>(new Segment);
  segment->was_filled_ = (seals & F_SEAL_WRITE) != 0;
  if (segment->was_filled_ && (seals & kSeals) != kSeals) {
    return absl::FailedPreconditionError(
        absl::StrFormat("weight segment has seals 0x%x, a finished one has 0x%x", seals, kSeals));
  }
  if (!segment->was_filled_) {
    ASSIGN_OR_RETURN(segment->pages_, Fill(fd, file, layout, options));
    if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
      return SystemError("sealing the weight segment");
    }
  }
  Mapping mapping(fd, layout.bytes, PROT_READ);
  if (!mapping.valid()) return SystemError(absl::StrCat("mapping ", layout.bytes, " bytes"));
  if (std::memcmp(mapping.data(), layout.header.data(), layout.header.size()) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("weight segment holds other tensors than %s needs", file.path()));
  }
  Populate(mapping.data(), layout.bytes, options.threads);
  segment->bytes_ = layout.bytes;
  segment->data_ = static_cast<const std::byte*>(mapping.Take());
  for (const SegmentLayout::Entry& entry : layout.entries) {
    segment->tensors_[entry.tensor->name] = {segment->data_ + entry.offset, entry.tensor->bytes};
  }
  return segment;
}

bool Segment::IsFinished(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_WRITE) != 0;
}

Segment::~Segment() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), bytes_);
}

std::span<const std::byte> Segment::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? std::span<const std::byte>() : it->second;
}

}  // namespace packtrain
