// Inline functions and templates that two files share are weak symbols, of which the linker keeps
// any one copy. One that was compiled for AVX-512 would then run on every CPU, so the files of a
// variant must not have any. Weak data (types V and u) is the same in every copy.

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>

namespace packtrain {
namespace {

struct CloseDeleter {
  void operator()(FILE* file) const { pclose(file); }
};

TEST(KernelObjectsTest, VariantFilesHaveNoWeakFunctions) {
  const std::string command = "nm --defined-only --print-file-name " PACKTRAIN_KERNEL_LIBRARY;
  const std::unique_ptr<FILE, CloseDeleter> nm(popen(command.c_str(), "r"));
  ASSERT_NE(nm, nullptr);
  int symbols = 0;
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, nm.get()) != nullptr) {
    // "library:object:address type name"
    const std::string line = buffer;
    if (line.find("_avx2.cc.o:") == std::string::npos &&
        line.find("_avx512.cc.o:") == std::string::npos) {
      continue;
    }
    ++symbols;
    const size_t type = line.find(' ') + 1;
    EXPECT_EQ(std::string("Ww").find(line[type]), std::string::npos) << line;
  }
  EXPECT_GT(symbols, 100);
}

}  // namespace
}  // namespace packtrain
