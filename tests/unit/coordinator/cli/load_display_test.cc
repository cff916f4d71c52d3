// Loading progress as plain lines and as bars.

#include "coordinator/cli/load_display.h"

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace packtrain {
namespace {

using std::chrono::milliseconds;

class LoadDisplayTest : public testing::Test {
 protected:
  ~LoadDisplayTest() override {
    std::fclose(file_);
    std::free(text_);
  }
  std::string Text() {
    std::fflush(file_);
    return text_;
  }

  char* text_ = nullptr;
  size_t size_ = 0;
  std::FILE* file_ = open_memstream(&text_, &size_);
  LoadDisplay::Time start_{};
};

TEST_F(LoadDisplayTest, WithoutATerminalThereIsALineNowAndThen) {
  LoadDisplay display(file_, false);
  display.Update("m/stage0", 0, 4 << 20, start_);
  display.Update("m/stage0", 1 << 20, 4 << 20, start_ + milliseconds(1000));
  display.Update("m/stage0", 2 << 20, 4 << 20, start_ + milliseconds(3000));
  display.Update("m/stage0", 4 << 20, 4 << 20, start_ + milliseconds(4000));
  display.Update("m/stage0", 4 << 20, 4 << 20, start_ + milliseconds(9000));
  EXPECT_EQ(Text(),
            "m/stage0: 0 B of 4.0 MiB,   0 %\n"
            "m/stage0: 2.0 MiB of 4.0 MiB,  50 %, 3 s left\n"
            "m/stage0: 4.0 MiB of 4.0 MiB, 100 %, loaded in 4.0 s\n");
}

TEST_F(LoadDisplayTest, OnATerminalBarsAreRedrawnInPlace) {
  LoadDisplay display(file_, true);
  display.Update("a", 0, 100, start_);
  display.Update("bb", 50, 100, start_ + milliseconds(10));
  EXPECT_NE(Text().find("\x1b[1A"), std::string::npos);
  EXPECT_NE(Text().find("bb [############            ] 50 B of 100 B,  50 %"), std::string::npos);
  display.Update("a", 100, 100, start_ + milliseconds(1000));
  EXPECT_NE(Text().find("\x1b[2A"), std::string::npos);
}

TEST_F(LoadDisplayTest, MoreBytesThanAnnouncedAreNotMoreThanAll) {
  LoadDisplay display(file_, true);
  display.Update("a", 150, 100, start_);
  EXPECT_NE(Text().find("100 B of 100 B, 100 %"), std::string::npos);
}

}  // namespace
}  // namespace packtrain
