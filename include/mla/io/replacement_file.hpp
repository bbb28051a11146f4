#ifndef MLA_IO_REPLACEMENT_FILE_HPP_
#define MLA_IO_REPLACEMENT_FILE_HPP_

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

#include "mla/core/error.hpp"

namespace mla {

/// Writes a file as a whole or not at all (POSIX): into a new file in the same folder, which takes
/// the name of the old one in commit(), after it has reached the disk. Until then the old one is as
/// it was, also when the disk is full or the program dies. Without commit() the new file is
/// deleted; only a program that is killed leaves it behind, as `path`.partial and a number.
class ReplacementFile {
 public:
  /// Throws std::runtime_error with the path and the system's reason, also where `path` is a
  /// directory, a device or anything else but a file.
  explicit ReplacementFile(const std::filesystem::path& path) : path_(path.string()) {
    struct ::stat status = {};
    if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
      throw_runtime(path_, ": not a regular file");
    for (int number = 1; descriptor_ < 0; ++number) {  // the first that nobody else has
      partial_ = path_ + ".partial" + std::to_string(number);
      descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor_ < 0 && errno != EEXIST) fail("cannot create");
    }
  }

  ~ReplacementFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(partial_.c_str());
  }
  ReplacementFile(const ReplacementFile&) = delete;
  ReplacementFile& operator=(const ReplacementFile&) = delete;

  /// Appends. Throws std::runtime_error with the path and the system's reason.
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ::ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("cannot write");
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  /// Waits for the disk and takes the place of the old file. Throws std::runtime_error with the
  /// path and the system's reason.
  void commit() {
    const std::string folder = std::filesystem::path(path_).parent_path().string();
    if (::fsync(descriptor_) != 0) fail("cannot write");
    const int closed = ::close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) fail("cannot write");
    if (::rename(partial_.c_str(), path_.c_str()) != 0) fail("cannot replace");
    committed_ = true;
    sync_folder(folder.empty() ? "." : folder.c_str());
  }

 private:
  // So that the new name survives a loss of power; a file system that cannot is no error.
  static void sync_folder(const char* folder) noexcept {
    const int descriptor = ::open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
  }

  [[noreturn]] void fail(const char* action) const {
    const int error = errno;
    throw_runtime(path_, ": ", action, ": ", std::generic_category().message(error));
  }

  std::string path_;
  std::string partial_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace mla

#endif  // MLA_IO_REPLACEMENT_FILE_HPP_
