// Aim: a segment holds the file's bytes, costs no more memory than they, and nothing but a finished
// segment of the same tensors is ever mapped. Method: a small model file; memory is measured in a
// child process that does nothing else.

#include "common/weights/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <numeric>

#include "common/base/host_limits.h"
#include "common/weights/gguf.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/test_files.h"

namespace packtrain {
namespace {

// A file with tensors "a", "b" and "c" of f32 values that differ, and what a worker takes of it.
class SegmentTest : public testing::Test {
 protected:
  void SetUp() override { Write(dir_.File("model.gguf"), 1000); }

  void Write(const std::string& path, size_t rows) {
    GgufWriter writer;
    writer.AddString("general.architecture", "test");
    std::vector<float> values(rows * 64);
    std::iota(values.begin(), values.end(), 0.0F);
    for (const char* name : {"a", "b", "c"}) {
      for (float& value : values) value += 0.5F;
      writer.AddF32Tensor(name, {64, rows}, values);
    }
    writer.WriteTo(path);
    auto file = GgufFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    layout_ = Plan({"c", "a"});
  }

  SegmentLayout Plan(const std::vector<std::string>& names) const {
    std::vector<const GgufTensor*> tensors;
    for (const std::string& name : names) tensors.push_back(file_->FindTensor(name));
    return PlanSegment(*file_, tensors);
  }

  int Create() const {
    const auto fds = CreateSegments(std::span(&layout_.bytes, 1));
    EXPECT_TRUE(fds.ok()) << fds.status();
    return fds.ok() ? fds->front() : -1;
  }

  // A segment of the right size with this beginning and these seals.
  int Forge(const std::string& header, int seals) const {
    const int fd = memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(layout_.bytes)), 0);
    EXPECT_EQ(pwrite(fd, header.data(), header.size(), 0), static_cast<ssize_t>(header.size()));
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
  }

  void ExpectRefused(int fd) const {
    const auto segment = Segment::Open(fd, *file_, layout_, {});
    EXPECT_EQ(segment.status().code(), absl::StatusCode::kFailedPrecondition) << segment.status();
    close(fd);
  }

  static constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  TempDir dir_;
  std::unique_ptr<GgufFile> file_;
  SegmentLayout layout_;
};

TEST_F(SegmentTest, HoldsTheBytesOfItsTensorsAndOfNoOthers) {
  const int fd = Create();
  uint64_t last_done = 0;
  const auto segment =
      Segment::Open(fd, *file_, layout_, {.threads = 3, .progress = [&](uint64_t done, uint64_t) {
                                            last_done = done;
                                            return true;
                                          }});
  ASSERT_TRUE(segment.ok()) << segment.status();
  EXPECT_FALSE((*segment)->was_filled());
  EXPECT_EQ(last_done, 2u * 1000 * 64 * 4);
  for (const char* name : {"a", "c"}) {
    const std::span<const std::byte> wanted = file_->Data(*file_->FindTensor(name));
    const std::span<const std::byte> found = (*segment)->Find(name);
    ASSERT_EQ(found.size(), wanted.size());
    EXPECT_EQ(std::memcmp(found.data(), wanted.data(), wanted.size()), 0) << name;
  }
  EXPECT_TRUE((*segment)->Find("b").empty());
  close(fd);
}

TEST_F(SegmentTest, AFinishedSegmentIsMappedWithoutTheFile) {
  const int fd = Create();
  ASSERT_TRUE(Segment::Open(fd, *file_, layout_, {}).ok());
  unlink(dir_.File("model.gguf").c_str());  // reading it again would fail
  bool asked = false;
  const auto segment = Segment::Open(fd, *file_, layout_, {.progress = [&](uint64_t, uint64_t) {
                                       asked = true;
                                       return true;
                                     }});
  ASSERT_TRUE(segment.ok()) << segment.status();
  EXPECT_TRUE((*segment)->was_filled());
  EXPECT_FALSE(asked);
  const std::span<const std::byte> wanted = file_->Data(*file_->FindTensor("a"));
  EXPECT_EQ(std::memcmp((*segment)->Find("a").data(), wanted.data(), wanted.size()), 0);
  close(fd);
}

TEST_F(SegmentTest, AForgedHeaderIsRefused) {
  for (const size_t at : {size_t{0}, size_t{8}, layout_.header.size() - 1}) {
    std::string header = layout_.header;
    header[at] = static_cast<char>(header[at] ^ 1);
    ExpectRefused(Forge(header, kSeals));
  }
  ExpectRefused(Forge("", kSeals));
}

TEST_F(SegmentTest, ASegmentOfOtherTensorsIsRefused) {
  const SegmentLayout other = Plan({"c", "b"});
  ASSERT_EQ(other.bytes, layout_.bytes);
  ExpectRefused(Forge(other.header, kSeals));
}

TEST_F(SegmentTest, ASegmentThatOthersCouldStillChangeIsRefused) {
  ExpectRefused(Forge(layout_.header, F_SEAL_WRITE));
  ExpectRefused(Forge(layout_.header, kSeals & ~F_SEAL_SHRINK));
}

TEST_F(SegmentTest, WhatIsNoSegmentIsRefused) {
  ExpectRefused(open("/dev/null", O_RDWR | O_CLOEXEC));
  ExpectRefused(open(dir_.File("model.gguf").c_str(), O_RDWR | O_CLOEXEC));
  const uint64_t bytes = layout_.bytes * 2;
  ExpectRefused(CreateSegments(std::span(&bytes, 1)).value().front());
}

TEST_F(SegmentTest, AHeaderWithoutTheSealIsFilledAgain) {
  const int fd = Forge(layout_.header, F_SEAL_GROW);
  const auto segment = Segment::Open(fd, *file_, layout_, {});
  ASSERT_TRUE(segment.ok()) << segment.status();
  const std::span<const std::byte> wanted = file_->Data(*file_->FindTensor("c"));
  EXPECT_EQ(std::memcmp((*segment)->Find("c").data(), wanted.data(), wanted.size()), 0);
  close(fd);
}

TEST_F(SegmentTest, ACancelledFillingCanBeginAgain) {
  const int fd = Create();
  // Before anything is read, and when all has been.
  for (const int last : {1, 2}) {
    int calls = 0;
    const auto cancelled = Segment::Open(
        fd, *file_, layout_, {.progress = [&](uint64_t, uint64_t) { return ++calls < last; }});
    EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled) << cancelled.status();
    EXPECT_EQ(calls, last);
  }
  const auto segment = Segment::Open(fd, *file_, layout_, {});
  ASSERT_TRUE(segment.ok()) << segment.status();
  EXPECT_FALSE((*segment)->was_filled());
  close(fd);
}

TEST_F(SegmentTest, AFileThatWasCutMeanwhileIsDataLoss) {
  const int fd = Create();
  ASSERT_EQ(truncate(dir_.File("model.gguf").c_str(), 8192), 0);
  const auto segment = Segment::Open(fd, *file_, layout_, {});
  EXPECT_EQ(segment.status().code(), absl::StatusCode::kDataLoss) << segment.status();
  close(fd);
}

TEST_F(SegmentTest, SegmentsThatTogetherExceedMemoryAreRefusedWithTheNumbers) {
  const uint64_t each = ReadMemoryLimits("").available_bytes / 10 * 7;
  const std::vector<uint64_t> sizes = {each, each};
  const auto fds = CreateSegments(sizes);
  EXPECT_EQ(fds.status().code(), absl::StatusCode::kResourceExhausted) << fds.status();
  EXPECT_NE(fds.status().message().find("GiB of memory needed"), std::string::npos) << fds.status();
}

// Peak resident bytes of this process, shared memory included.
uint64_t PeakBytes() {
  std::ifstream in("/proc/self/status");
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

TEST_F(SegmentTest, FillingTakesTheWeightsAndTheReadersBuffersOnly) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer keeps four bytes of its own for each";
#endif
  Write(dir_.File("large.gguf"), 300'000);  // 3 * 73 MiB
  layout_ = Plan({"a", "b", "c"});
  file_ = nullptr;  // mapped anew by the child, which must not count what we touched
  int result[2];
  ASSERT_EQ(pipe(result), 0);
  const pid_t child = fork();
  if (child == 0) {
    // What it has inherited counts too; the peak is set back to the present.
    std::ofstream("/proc/self/clear_refs") << "5";
    const uint64_t before = PeakBytes();
    auto file = GgufFile::Open(dir_.File("large.gguf"));
    std::vector<const GgufTensor*> tensors;
    for (const char* name : {"a", "b", "c"}) tensors.push_back((*file)->FindTensor(name));
    const SegmentLayout layout = PlanSegment(**file, tensors);
    const int fd = CreateSegments(std::span(&layout.bytes, 1)).value().front();
    const bool ok = Segment::Open(fd, **file, layout, {}).ok();
    const uint64_t used = ok ? PeakBytes() - before : 0;
    _exit(write(result[1], &used, sizeof used) == sizeof used ? 0 : 1);
  }
  uint64_t used = 0;
  ASSERT_EQ(read(result[0], &used, sizeof used), static_cast<ssize_t>(sizeof used));
  waitpid(child, nullptr, 0);
  close(result[0]);
  close(result[1]);
  // Four threads with 8 MiB each, and as much again for everything else.
  EXPECT_LT(used, layout_.bytes + (64 << 20));
  EXPECT_GT(used, layout_.bytes / 10 * 9);
}

}  // namespace
}  // namespace packtrain
