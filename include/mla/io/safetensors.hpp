#ifndef MLA_IO_SAFETENSORS_HPP_
#define MLA_IO_SAFETENSORS_HPP_

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/json.hpp"
#include "mla/io/mapped_file.hpp"
#include "mla/io/safetensors_dtype.hpp"

// The safetensors format (https://github.com/huggingface/safetensors): 8 bytes with the length n of
// the header, n bytes of JSON, {name: {dtype, shape, data_offsets}} and perhaps `__metadata__`, and
// the data, which the tensors cover without overlap and without holes. All little-endian.

namespace mla {

static_assert(std::endian::native == std::endian::little,
              "Tensors of safetensors files are little-endian and are read in place.");

/// "[2, 3]"
inline std::string shape_text(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

/// A tensor in an open file, row-major and dense.
struct SafetensorsTensor {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::float32;
  std::vector<Index> shape;          ///< empty: a single number
  std::span<const std::byte> bytes;  ///< aligned to its element size

  /// The elements as they are stored, no conversion. Throws std::runtime_error when they are not T.
  template <class T>
  std::span<const T> values() const {
    constexpr auto wanted = detail::safetensors_dtype_of<T>();
    static_assert(wanted.has_value(),
                  "A tensor is read as float, bfloat16, float16, std::int32_t or std::int64_t.");
    if (dtype != *wanted)
      throw_runtime("tensor ", name, " has dtype ", name_of(dtype), ", expected ",
                    name_of(*wanted));
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

/// What of the tensors in a file is looked at.
enum class TensorData {
  read,
  untouched,  ///< only headers are read, however large the file is: types, shapes, sizes
};

/// An open safetensors file. Tensors are views into the mapped file; only one whose place in the
/// file is not a multiple of its element size (the format permits a header of any length) is copied
/// when the file is opened. Views live as long as the object, also when it is moved. Immutable, so
/// safe to use from several threads.
class SafetensorsFile {
 public:
  /// Throws std::runtime_error naming the file and the tensor for everything that the format does
  /// not permit.
  /// Where the data is to stay untouched, tensors may not be aligned.
  explicit SafetensorsFile(const std::filesystem::path& path, TensorData use = TensorData::read)
      : file_(path) {
    const std::span<const std::byte> bytes = file_.bytes();
    refuse_other_formats();
    std::uint64_t header_bytes = 0;
    if (bytes.size() < sizeof(header_bytes))
      throw_runtime(file_.path(), ": a safetensors file begins with 8 bytes of header length, got ",
                    bytes.size(), " bytes");
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    const auto rest = bytes.subspan(sizeof(header_bytes));
    if (header_bytes > rest.size())
      throw_runtime(file_.path(), ": header of ", header_bytes, " bytes, but only ", rest.size(),
                    " bytes follow its length");
    const auto text = rest.first(header_bytes);
    const auto data = rest.subspan(header_bytes);
    const JsonDocument document(
        parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, file_.path()));
    const nlohmann::json& header = *document;
    if (!header.is_object() || text.front() != std::byte{'{'})
      throw_runtime(file_.path(), ": header must be a JSON object");
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__")
        read_metadata(entry);
      else
        tensors_.emplace(name, read_tensor(name, entry, data));
    }
    check_coverage(data);
    if (use == TensorData::untouched) return;
    for (auto& [name, tensor] : tensors_) align(tensor);
  }

  const std::string& path() const noexcept { return file_.path(); }
  /// The whole file.
  std::span<const std::byte> bytes() const noexcept { return file_.bytes(); }

  /// All tensors by name.
  const std::map<std::string, SafetensorsTensor, std::less<>>& tensors() const noexcept {
    return tensors_;
  }

  bool contains(std::string_view name) const { return tensors_.contains(name); }

  /// Throws std::runtime_error when there is none of this name.
  const SafetensorsTensor& tensor(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw_runtime(path(), ": tensor ", name, " is missing");
    return found->second;
  }

  /// All names, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    result.reserve(tensors_.size());
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }

  /// Lets go of the memory that holds `tensor`, if it is one of this file's. It can be read again.
  void release(const SafetensorsTensor& tensor) const noexcept { file_.release(tensor.bytes); }

  /// The strings of `__metadata__`, empty when there is none.
  const std::map<std::string, std::string, std::less<>>& metadata() const noexcept {
    return metadata_;
  }

 private:
  // What lies in the place of a safetensors file most often. Read as the length of a header, the
  // beginnings of both are of gigabytes.
  void refuse_other_formats() const {
    const std::string_view text(reinterpret_cast<const char*>(file_.bytes().data()),
                                file_.bytes().size());
    if (text.starts_with("version https://git-lfs"))
      throw_runtime(path(),
                    ": is a git-lfs pointer, not the file itself: `git lfs pull` fetches it");
    if (text.starts_with("GGUF"))
      throw_runtime(path(), ": is a GGUF file; only safetensors files are read");
  }

  template <class... Parts>
  [[noreturn]] void fail(const std::string& tensor, const Parts&... parts) const {
    throw_runtime(path(), ": tensor ", tensor, ": ", parts...);
  }

  void read_metadata(const nlohmann::json& entry) {
    if (!entry.is_object())
      throw_runtime(path(), ": __metadata__ must be an object, got ", json_text(entry));
    for (const auto& [key, value] : entry.items())
      metadata_.emplace(key, json_string(value, path() + ": __metadata__." + key));
  }

  SafetensorsTensor read_tensor(const std::string& name, const nlohmann::json& entry,
                                std::span<const std::byte> data) const {
    const std::string where = path() + ": tensor " + name + ": ";
    if (!entry.is_object()) fail(name, "must be an object, got ", json_text(entry));
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!entry.contains(field)) fail(name, field, " is missing");
    if (entry.size() != 3)
      fail(name, "has fields besides dtype, shape and data_offsets: ", json_text(entry));

    SafetensorsTensor tensor;
    tensor.name = name;
    tensor.dtype = read_dtype(name, json_string(entry["dtype"], where + "dtype"));
    if (!entry["shape"].is_array())
      fail(name, "shape must be an array, got ", json_text(entry["shape"]));
    Index expected_bytes = bytes_of(tensor.dtype);
    for (const auto& dim : entry["shape"]) {
      tensor.shape.push_back(json_size(dim, where + "shape"));
      if (__builtin_mul_overflow(expected_bytes, tensor.shape.back(), &expected_bytes))
        fail(name, "shape ", json_text(entry["shape"]), " has more than 2^63 bytes");
    }

    const auto& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2)
      fail(name, "data_offsets must be two numbers, got ", json_text(offsets));
    const Index begin = json_size(offsets[0], where + "data_offsets");
    const Index end = json_size(offsets[1], where + "data_offsets");
    if (begin > end) fail(name, "data_offsets are reversed: ", json_text(offsets));
    if (end > std::ssize(data))
      fail(name, "data_offsets ", json_text(offsets), " end beyond the ", data.size(),
           " bytes of data");
    if (end - begin != expected_bytes)
      fail(name, "shape ", shape_text(tensor.shape), " of ", name_of(tensor.dtype), " needs ",
           expected_bytes, " bytes, but data_offsets ", json_text(offsets), " hold ", end - begin);
    tensor.bytes =
        data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    return tensor;
  }

  SafetensorsDType read_dtype(const std::string& tensor, std::string_view name) const {
    const auto& all = detail::kSafetensorsDTypes;
    const auto* found = std::ranges::find(all, name, [](const auto& info) { return info.name; });
    if (found == std::end(all)) fail(tensor, "unknown dtype ", name);
    return static_cast<SafetensorsDType>(found - std::begin(all));
  }

  // Tensors in the order of their data must each begin where the one before ended.
  void check_coverage(std::span<const std::byte> data) const {
    std::vector<const SafetensorsTensor*> order;
    order.reserve(tensors_.size());
    for (const auto& [name, tensor] : tensors_) order.push_back(&tensor);
    std::ranges::sort(order, {}, [](const SafetensorsTensor* tensor) {
      return std::pair(tensor->bytes.data(), tensor->bytes.size());
    });
    const std::byte* expected = data.data();
    std::string before = "the header";
    for (const SafetensorsTensor* tensor : order) {
      const std::byte* begin = tensor->bytes.data();
      if (begin < expected) fail(tensor->name, "overlaps with ", before);
      if (begin > expected)
        fail(tensor->name, "leaves a hole of ", begin - expected, " bytes after ", before);
      expected = begin + tensor->bytes.size();
      before = "tensor " + tensor->name;
    }
    const auto unused = data.data() + data.size() - expected;
    if (unused != 0)
      throw_runtime(path(), ": ", unused, " bytes after ", before, " belong to no tensor");
  }

  void align(SafetensorsTensor& tensor) {
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.bytes.data());
    if (address % static_cast<std::uintptr_t>(bytes_of(tensor.dtype)) == 0) return;
    const auto& copy = copies_.emplace_back(tensor.bytes.size());
    std::ranges::copy(tensor.bytes, copy.data());
    tensor.bytes = {copy.data(), copy.size()};
  }

  MappedFile file_;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
  std::vector<AlignedBuffer<std::byte>> copies_;  // of tensors that are not aligned in the file
};

}  // namespace mla

#endif  // MLA_IO_SAFETENSORS_HPP_
