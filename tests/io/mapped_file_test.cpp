#include "mla/io/mapped_file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::TemporaryDirectory;
using test::write_file;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, HoldsTheBytesOfTheFile) {
  const TemporaryDirectory directory;
  const MappedFile file(write_file(directory / "a", "seven b"));
  EXPECT_EQ(text_of(file), "seven b");
}

TEST(MappedFile, AnEmptyFileHasNoBytes) {
  const TemporaryDirectory directory;
  const MappedFile file(write_file(directory / "empty", ""));
  EXPECT_TRUE(file.bytes().empty());
}

TEST(MappedFile, MovingKeepsTheAddress) {
  const TemporaryDirectory directory;
  MappedFile first(write_file(directory / "a", "first"));
  const std::byte* address = first.bytes().data();
  MappedFile second(write_file(directory / "b", "second"));
  second = std::move(first);
  EXPECT_EQ(text_of(second), "first");
  EXPECT_EQ(second.bytes().data(), address);
  const MappedFile third(std::move(second));
  EXPECT_EQ(third.bytes().data(), address);
}

TEST(MappedFile, OutlivesItsNameInTheDirectory) {
  const TemporaryDirectory directory;
  const MappedFile file(write_file(directory / "a", "still here"));
  std::filesystem::remove(directory / "a");
  EXPECT_EQ(text_of(file), "still here");
}

// Written to a new file that takes the old one's name, as one should.
TEST(MappedFile, KeepsItsBytesWhenTheFileIsReplaced) {
  const TemporaryDirectory directory;
  const MappedFile file(write_file(directory / "a", "still here"));
  std::filesystem::rename(write_file(directory / "b", "new"), directory / "a");
  EXPECT_EQ(text_of(file), "still here");
}

// What the comment of MappedFile says: no error that could be caught.
TEST(MappedFile, AReadBeyondTheNewEndOfAShortenedFileIsSigbus) {
  const TemporaryDirectory directory;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto path = write_file(directory / "a", std::string(3 * page, 'x'));
  const auto status_of_reading = [&](std::size_t place) {
    const ::pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGBUS, SIG_DFL);  // sanitizers have a handler of their own
      const MappedFile file(path);
      std::filesystem::resize_file(path, page);
      const volatile std::byte* bytes = file.bytes().data();
      ::_exit(bytes[place] == std::byte{'x'} ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    write_file(path, std::string(3 * page, 'x'));
    return status;
  };
  const int before = status_of_reading(page - 1), beyond = status_of_reading(page);
  EXPECT_TRUE(WIFEXITED(before) && WEXITSTATUS(before) == 0);
  EXPECT_TRUE(WIFSIGNALED(beyond) && WTERMSIG(beyond) == SIGBUS);
}

TEST(MappedFile, NamesThePathAndTheReasonWhenItCannotOpen) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(fails_naming([&] { MappedFile(directory / "none"); },
                           {(directory / "none").string(), "No such file or directory"}));
  EXPECT_TRUE(fails_naming([&] { MappedFile(directory.path()); },
                           {directory.path().string(), "not a regular file"}));
}

}  // namespace
}  // namespace mla
