#include "common/base/bus_error.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

namespace packtrain {
namespace {

TEST(BusErrorDeathTest, AReadBeyondAShortenedFileEndsTheProcessWithOneLine) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(ftruncate(fileno(file), 1 << 20), 0);
  void* mapping = mmap(nullptr, 1 << 20, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  ASSERT_NE(mapping, MAP_FAILED);
  const volatile char* last = static_cast<const char*>(mapping) + (1 << 20) - 1;
  EXPECT_EQ(*last, 0);
  ASSERT_EQ(ftruncate(fileno(file), 1), 0);
  EXPECT_EXIT(
      {
        ExitOnBusError();
        (void)*last;
      },
      testing::ExitedWithCode(1), "a file that is in use was shortened");
  munmap(mapping, 1 << 20);
  std::fclose(file);
}

}  // namespace
}  // namespace packtrain
