#ifndef MLA_FUZZ_FUZZ_HPP_
#define MLA_FUZZ_FUZZ_HPP_

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// What the fuzz targets share. A target makes files of its input and uses them as a program would:
// whatever is in them, the library answers or throws std::invalid_argument or std::runtime_error.
// Anything else ends the process, and libFuzzer keeps the input.

namespace mla::fuzz {

inline void check(bool holds, const char* claim) {
  if (holds) return;
  std::cerr << "does not hold: " << claim << std::endl;
  std::abort();
}

/// Calls `use`, from which only the errors that the library documents may come. Their children,
/// such as std::filesystem::filesystem_error or std::system_error, say nothing of the file's
/// content.
template <class Use>
void only_documented_errors(const Use& use) {
  try {
    use();
  } catch (const std::exception& error) {
    const bool documented = typeid(error) == typeid(std::invalid_argument) ||
                            typeid(error) == typeid(std::runtime_error);
    if (!documented) throw;
    check(*error.what() != '\0', "every error says something");
  }
}

/// A file in memory with a path, written anew for every input.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", 0)) {
    check(descriptor_ >= 0, "memfd_create works");
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::filesystem::path& write(std::string_view bytes) {
    check(::ftruncate(descriptor_, 0) == 0 &&
              ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) == std::ssize(bytes),
          "a file in memory can be written");
    return path_;
  }
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  int descriptor_;
  std::filesystem::path path_;
};

/// A directory whose files are all in memory.
class MemoryDirectory {
 public:
  explicit MemoryDirectory(const std::vector<std::string>& names) : files_(names.size()) {
    std::string path = (std::filesystem::temp_directory_path() / "mla-fuzz-XXXXXX").string();
    check(::mkdtemp(path.data()) != nullptr, "a temporary directory can be made");
    path_ = path;
    for (std::size_t i = 0; i < names.size(); ++i)
      std::filesystem::create_symlink(files_[i].path(), path_ / names[i]);
  }
  ~MemoryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  MemoryDirectory(const MemoryDirectory&) = delete;
  MemoryDirectory& operator=(const MemoryDirectory&) = delete;

  void write(std::size_t file, std::string_view bytes) { files_[file].write(bytes); }
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::vector<MemoryFile> files_;
  std::filesystem::path path_;
};

/// The input as `count` texts, which NUL bytes separate; the last is the rest, whatever it has.
inline std::vector<std::string_view> split(std::string_view input, std::size_t count) {
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < count) {
    const std::size_t end = std::min(input.find('\0'), input.size());
    parts.push_back(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  parts.push_back(input);
  return parts;
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace mla::fuzz

#endif  // MLA_FUZZ_FUZZ_HPP_
