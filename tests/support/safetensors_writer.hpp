#ifndef MLA_SUPPORT_SAFETENSORS_WRITER_HPP_
#define MLA_SUPPORT_SAFETENSORS_WRITER_HPP_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/tensor.hpp"

namespace mla::test {

/// A fresh directory, deleted with everything in it at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "mla-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make " + name);
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Writes `content` and returns `path`.
inline std::filesystem::path write_file(const std::filesystem::path& path,
                                        std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
  return path;
}

/// The bytes of a safetensors file with this header, right or wrong.
inline std::string safetensors_bytes(std::string_view header, std::string_view data = "") {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes.append(header).append(data);
}

/// Collects tensors one after the other and writes them as one safetensors file.
class SafetensorsWriter {
 public:
  template <class T>
  SafetensorsWriter& add(const std::string& name, const std::string& dtype,
                         const std::vector<Index>& shape, const std::vector<T>& values) {
    const std::size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
    return *this;
  }

  /// The whole file. Without `spaces` after the header the data is aligned to 8 bytes.
  std::string bytes(std::size_t spaces = 0) const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8 + spaces, ' ');
    return safetensors_bytes(header, data_);
  }
  std::filesystem::path write(const std::filesystem::path& path) const {
    return write_file(path, bytes());
  }

 private:
  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

/// Whether `call` throws a std::runtime_error with all of `parts` in its message.
template <class Call>
testing::AssertionResult fails_naming(Call&& call, const std::vector<std::string>& parts) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    for (const std::string& part : parts)
      if (std::string_view(error.what()).find(part) == std::string_view::npos)
        return testing::AssertionFailure() << "no " << part << " in: " << error.what();
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "no std::runtime_error";
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_SAFETENSORS_WRITER_HPP_
