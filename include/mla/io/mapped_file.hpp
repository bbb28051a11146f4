#ifndef MLA_IO_MAPPED_FILE_HPP_
#define MLA_IO_MAPPED_FILE_HPP_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "mla/core/error.hpp"

namespace mla {

/// A whole file in memory, read-only (POSIX mmap): pages are read when they are first touched and
/// shared by all processes that map the file.
///
/// Nobody must shorten or overwrite the file meanwhile. The system answers the next read beyond its
/// new end with the signal SIGBUS, which ends the program; reads before it may see the new content.
/// To replace a file that may be mapped, write a new one and rename it (ReplacementFile): a mapping
/// keeps what it had.
class MappedFile {
 public:
  /// Throws std::runtime_error with the path and the system's reason.
  explicit MappedFile(const std::filesystem::path& path) : path_(path.string()) {
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.number < 0) fail("cannot open");
    struct ::stat status = {};
    if (::fstat(file.number, &status) != 0) fail("cannot stat");
    if (!S_ISREG(status.st_mode)) throw_runtime(path_, ": not a regular file");
    if (status.st_size == 0) return;  // mmap refuses length 0; bytes() is empty
    const auto size = static_cast<std::size_t>(status.st_size);
    void* memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (memory == MAP_FAILED) fail("cannot map");
    bytes_ = {static_cast<const std::byte*>(memory), size};
  }

  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  /// The content, at an address that moving the object does not change; aligned to a page.
  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  const std::string& path() const noexcept { return path_; }

  /// Lets go of the memory that holds `part`, if it is a part of bytes(). Who reads it again waits
  /// for the disk, unless the system still has it.
  void release(std::span<const std::byte> part) const noexcept {
    const std::less<const std::byte*> before;
    if (part.empty() || before(part.data(), bytes_.data()) ||
        before(bytes_.data() + bytes_.size(), part.data() + part.size()))
      return;
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = static_cast<std::size_t>(part.data() - bytes_.data());
    const std::size_t first = (begin + page - 1) / page * page;
    const std::size_t last = (begin + part.size()) / page * page;
    if (first < last)
      ::madvise(const_cast<std::byte*>(bytes_.data()) + first, last - first, MADV_DONTNEED);
  }

 private:
  struct Descriptor {
    int number;
    ~Descriptor() {
      if (number >= 0) ::close(number);
    }
  };

  [[noreturn]] void fail(const char* action) const {
    const int error = errno;
    throw_runtime(path_, ": ", action, ": ", std::generic_category().message(error));
  }

  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace mla

#endif  // MLA_IO_MAPPED_FILE_HPP_
