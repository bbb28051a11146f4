#include "mla/io/mapped_file.hpp"

#include <gtest/gtest.h>

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

TEST(MappedFile, NamesThePathAndTheReasonWhenItCannotOpen) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(fails_naming([&] { MappedFile(directory / "none"); },
                           {(directory / "none").string(), "No such file or directory"}));
  EXPECT_TRUE(fails_naming([&] { MappedFile(directory.path()); },
                           {directory.path().string(), "not a regular file"}));
}

}  // namespace
}  // namespace mla
