// What a killed process leaves is removed by the next one; what others use or own is not.

#include "coordinator/fleet/socket_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace packtrain {
namespace {

namespace fs = std::filesystem;

class SocketFolderTest : public testing::Test {
 protected:
  SocketFolderTest() {
    char path[] = "/tmp/socket-folder-test-XXXXXX";
    parent_ = mkdtemp(path);
  }
  ~SocketFolderTest() override { fs::remove_all(parent_); }

  std::unique_ptr<SocketFolder> Make() { return *SocketFolder::Create(parent_); }
  int Entries() const {
    return static_cast<int>(std::distance(fs::directory_iterator(parent_), {}));
  }

  std::string parent_;
};

TEST_F(SocketFolderTest, GoesWithItsContents) {
  auto folder = Make();
  const std::string path = folder->path();
  std::ofstream(path + "/worker.sock") << "x";
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_all);
  folder.reset();
  EXPECT_EQ(Entries(), 0);
}

TEST_F(SocketFolderTest, WhatAKilledProcessLeftIsRemovedByTheNext) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto folder = SocketFolder::Create(parent_);
    std::ofstream((*folder)->path() + "/worker.sock") << "x";
    if (write(ready[1], "1", 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  close(ready[1]);
  { const auto beside = Make(); }
  EXPECT_EQ(Entries(), 1) << "of a process that lives";
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(Entries(), 1);
  const auto next = Make();
  EXPECT_EQ(Entries(), 1);
  EXPECT_TRUE(fs::exists(next->path()));
}

TEST_F(SocketFolderTest, FoldersThatAreNotCertainlyAbandonedStay) {
  fs::create_directory(parent_ + "/packtrain-abcdef");  // being made: no lock yet
  fs::create_directory(parent_ + "/packtrain-longer-name");
  std::ofstream(parent_ + "/packtrain-longer-name/lock") << "";
  std::ofstream(parent_ + "/packtrain-afile1") << "";
  fs::create_directory(parent_ + "/elsewhere");
  std::ofstream(parent_ + "/elsewhere/lock") << "";
  fs::create_directory_symlink(parent_ + "/elsewhere", parent_ + "/packtrain-alink1");
  { const auto folder = Make(); }
  EXPECT_EQ(Entries(), 5);
  EXPECT_TRUE(fs::exists(parent_ + "/elsewhere/lock"));
}

TEST_F(SocketFolderTest, AParentThatIsNotThereIsNamed) {
  const absl::Status status = SocketFolder::Create(parent_ + "/none").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find(parent_ + "/none: "), std::string::npos) << status;
}

}  // namespace
}  // namespace packtrain
