#include "common/base/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace packtrain {
namespace {

constexpr size_t kBytes = 6 * kHugePageBytes;

// Of the mapping at `data`, as the kernel tells it.
size_t BytesInHugePages(const void* data) {
  std::ifstream smaps("/proc/self/smaps");
  std::ostringstream begin;
  begin << std::hex << reinterpret_cast<uintptr_t>(data) << "-";
  bool mine = false;
  size_t kib = 0;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') < line.find(' ')) mine = line.rfind(begin.str(), 0) == 0;
    if (mine && line.rfind("ShmemPmdMapped:", 0) == 0) kib = std::stoul(line.substr(15));
  }
  return kib << 10;
}

TEST(HugePagesTest, TheKernelAgreesOnWhatWasTaken) {
  auto* const data = static_cast<std::byte*>(MapShared(-1, kBytes, PROT_READ | PROT_WRITE));
  ASSERT_NE(data, MAP_FAILED);
  EXPECT_EQ(BytesInHugePages(data), 0u);
  // None on old kernels or where memory is too scattered.
  const size_t taken = TakeHugePages(data, kBytes, 2);
  EXPECT_EQ(BytesInHugePages(data), taken);
  EXPECT_TRUE(std::all_of(data, data + kBytes, [](std::byte b) { return b == std::byte{0}; }));
  munmap(data, kBytes);
}

TEST(HugePagesTest, MappingsOfAFileShareItsBytesAndBeginWithAHugePage) {
  const int fd = memfd_create("huge-pages-test", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(fd, kBytes), 0);
  auto* const one = static_cast<std::byte*>(MapShared(fd, kBytes, PROT_READ | PROT_WRITE));
  ASSERT_NE(one, MAP_FAILED);
  TakeHugePages(one, kBytes, 3);
  one[kBytes - 1] = std::byte{7};
  auto* const two = static_cast<std::byte*>(MapShared(fd, kBytes, PROT_READ));
  ASSERT_NE(two, MAP_FAILED);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(one) % kHugePageBytes, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(two) % kHugePageBytes, 0u);
  EXPECT_EQ(two[kBytes - 1], std::byte{7});
  munmap(one, kBytes);
  munmap(two, kBytes);
  close(fd);
}

TEST(HugePagesTest, WhatCannotBeMappedIsSaid) {
  EXPECT_EQ(MapShared(1 << 20, kBytes, PROT_READ), MAP_FAILED);
}

}  // namespace
}  // namespace packtrain
