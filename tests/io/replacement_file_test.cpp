#include "mla/io/replacement_file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "support/full_disk.hpp"
#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::FullDisk;
using test::names_in;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;

void write(ReplacementFile& file, std::string_view text) {
  file.write(std::as_bytes(std::span(text)));
}

TEST(ReplacementFile, TakesTheNameOfTheOldFileInTheCommitAndNotBefore) {
  const TemporaryDirectory directory;
  const auto path = write_file(directory / "file", "the old text, which is longer");
  {
    ReplacementFile file(path);
    write(file, "the new ");
    write(file, "text");
    EXPECT_EQ(read_file(path), "the old text, which is longer");
    file.commit();
    EXPECT_EQ(read_file(path), "the new text");
  }
  EXPECT_EQ(names_in(directory), std::vector<std::string>{"file"});
}

TEST(ReplacementFile, MakesAFileWhereThereWasNoneWithTheUsualPermissions) {
  const TemporaryDirectory directory;
  ReplacementFile file(directory / "file");
  write(file, "text");
  file.commit();
  EXPECT_EQ(read_file(directory / "file"), "text");
  const auto usual = std::filesystem::status(write_file(directory / "other", "")).permissions();
  EXPECT_EQ(std::filesystem::status(directory / "file").permissions(), usual);
}

TEST(ReplacementFile, WithoutACommitNothingHasHappened) {
  const TemporaryDirectory directory;
  const auto path = write_file(directory / "file", "old");
  {
    ReplacementFile file(path);
    write(file, "new");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(names_in(directory), std::vector<std::string>{"file"});
}

TEST(ReplacementFile, AFullDiskLosesNothing) {
  const TemporaryDirectory directory;
  const auto path = write_file(directory / "file", "old");
  {
    const FullDisk disk(1000);
    ReplacementFile file(path);
    EXPECT_TRUE(fails_naming([&] { write(file, std::string(2000, 'n')); },
                             {path.string(), "cannot write", "too large"}));
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(names_in(directory), std::vector<std::string>{"file"});
}

TEST(ReplacementFile, AProcessThatIsKilledLosesNothingAndHindersNobody) {
  const TemporaryDirectory directory;
  const auto path = write_file(directory / "file", "old");
  const ::pid_t child = ::fork();
  if (child == 0) {
    ReplacementFile file(path);
    write(file, "half of the ne");
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(names_in(directory), (std::vector<std::string>{"file", "file.partial1"}));
  ReplacementFile file(path);
  write(file, "new");
  file.commit();
  EXPECT_EQ(read_file(path), "new");
}

TEST(ReplacementFile, OfTwoAtTheSameTimeTheLastCommitCounts) {
  const TemporaryDirectory directory;
  ReplacementFile first(directory / "file"), second(directory / "file");
  write(first, "first");
  write(second, "second");
  second.commit();
  EXPECT_EQ(read_file(directory / "file"), "second");
  first.commit();
  EXPECT_EQ(read_file(directory / "file"), "first");
  EXPECT_EQ(names_in(directory), std::vector<std::string>{"file"});
}

TEST(ReplacementFile, DoesNotReplaceWhatIsNoFile) {
  const TemporaryDirectory directory;
  const auto pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_TRUE(
      fails_naming([&] { ReplacementFile file(pipe); }, {pipe.string(), "not a regular file"}));
  EXPECT_TRUE(fails_naming([&] { ReplacementFile file(directory.path()); },
                           {directory.path().string(), "not a regular file"}));
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
}

TEST(ReplacementFile, NamesThePathAndTheReasonWhenItCannotBeMade) {
  const TemporaryDirectory directory;
  const auto path = directory / "none/file";
  EXPECT_TRUE(fails_naming([&] { ReplacementFile file(path); },
                           {path.string(), "cannot create", "No such file or directory"}));
}

TEST(ReplacementFile, AFolderThatVanishesIsNamed) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "folder");
  ReplacementFile file(directory / "folder/file");
  write(file, "text");
  std::filesystem::remove_all(directory / "folder");
  EXPECT_TRUE(fails_naming([&] { file.commit(); },
                           {(directory / "folder/file").string(), "cannot replace"}));
}

}  // namespace
}  // namespace mla
