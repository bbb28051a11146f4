#ifndef MLA_EXAMPLES_PROGRAMS_FILES_HPP_
#define MLA_EXAMPLES_PROGRAMS_FILES_HPP_

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "mla/core/error.hpp"

namespace mla::programs {

/// What there is in a file, or in standard input for "-". Throws std::runtime_error with the path
/// and the system's reason.
inline std::string read_file(const std::string& path) {
  struct Descriptor {
    int number;
    ~Descriptor() {
      if (number > STDIN_FILENO) ::close(number);
    }
  };
  const Descriptor file{path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) throw_runtime(path, ": cannot open: ", std::strerror(errno));
  std::string text;
  std::array<char, 1 << 16> buffer;
  for (;;) {
    const ssize_t bytes = ::read(file.number, buffer.data(), buffer.size());
    if (bytes == 0) return text;
    if (bytes > 0)
      text.append(buffer.data(), static_cast<std::size_t>(bytes));
    else if (errno != EINTR)
      throw_runtime(path, ": cannot read: ", std::strerror(errno));
  }
}

/// Writes to standard output at once, without a buffer. Throws std::runtime_error with the system's
/// reason, a full disk for one.
inline void write_output(std::string_view text) {
  while (!text.empty()) {
    const ssize_t bytes = ::write(STDOUT_FILENO, text.data(), text.size());
    if (bytes >= 0)
      text.remove_prefix(static_cast<std::size_t>(bytes));
    else if (errno != EINTR)
      throw_runtime("cannot write to standard output: ", std::strerror(errno));
  }
}

/// The end of output: writes what printf() still holds. A file system over a network may report a
/// full disk only here. Throws as write_output.
inline void close_output() {
  if (std::fflush(stdout) != 0 || (::close(STDOUT_FILENO) != 0 && errno != EBADF && errno != EINTR))
    throw_runtime("cannot write to standard output: ", std::strerror(errno));
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_FILES_HPP_
