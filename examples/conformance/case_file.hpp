#ifndef MLA_EXAMPLES_CONFORMANCE_CASE_FILE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_CASE_FILE_HPP_

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "generated_tensor.hpp"

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/json.hpp"
#include "mla/io/safetensors.hpp"

namespace mla::conformance {

/// A tensor of a case, stored or generated; valid as long as its file is open.
struct CaseTensor {
  std::string name;
  std::vector<Index> shape;
  WeightView values;  ///< as one row

  /// The same numbers as a matrix [rows, cols] of float32.
  RowMajorMatrix matrix(Index rows, Index cols) const {
    RowMajorMatrix result(rows, cols);
    info_of(values.format).widen(values, {result.data(), 1, values.cols});
    return result;
  }
};

/// An open case file: metadata, and tensors by name whether they are stored or generated.
class CaseFile {
 public:
  /// Throws std::runtime_error, as all members do, that names the file and what is wrong with it.
  explicit CaseFile(const std::filesystem::path& path) : file_(path) {
    for (const auto& [name, stored] : file_.tensors())
      if (weight_format_of(stored.dtype))
        tensors_[name] = {name, stored.shape, stored_values(stored)};
    if (!has_metadata("generator")) return;
    const nlohmann::json generator = json("generator");
    if (!generator.is_array()) fail("__metadata__.generator must be a list");
    for (const auto& entry : generator) add(read_generated_tensor(entry, this->path()));
  }

  const std::string& path() const noexcept { return file_.path(); }
  std::string name() const {
    return has_metadata("case") ? text("case") : std::filesystem::path(path()).stem().string();
  }
  const std::string& kind() const { return text("kind"); }

  bool has_metadata(std::string_view key) const { return file_.metadata().contains(key); }
  const std::string& text(std::string_view key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end()) fail("__metadata__.", key, " is missing");
    return found->second;
  }
  nlohmann::json json(std::string_view key) const {
    return parse_json(text(key), path() + ": __metadata__." + std::string(key));
  }
  double number(std::string_view key) const {
    return json_number(json(key), path() + ": __metadata__." + std::string(key));
  }

  bool contains(std::string_view name) const { return tensors_.contains(name); }
  const CaseTensor& tensor(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) refuse_missing(name);
    return found->second;
  }
  const CaseTensor& tensor(std::string_view name, const std::vector<Index>& shape) const {
    const CaseTensor& found = tensor(name);
    if (found.shape != shape)
      fail("tensor ", name, " has shape ", shape_text(found.shape), ", expected ",
           shape_text(shape));
    return found;
  }
  /// A tensor of integers, which case files store as float32.
  std::vector<Index> integers(std::string_view name, const std::vector<Index>& shape) const {
    std::vector<Index> result;
    for (const float value : to_float_vector(tensor(name, shape).values)) {
      if (!(std::abs(value) <= 0x1p24f) || value != std::trunc(value))
        fail("tensor ", name, " must have integers up to 2^24, got ", value);
      result.push_back(static_cast<Index>(value));
    }
    return result;
  }

  /// Whether the file stores a tensor, of whatever type.
  bool has_tensor(std::string_view name) const { return file_.tensors().contains(name); }
  /// The bytes of a tensor of one of these types, which are no numbers here.
  std::span<const std::byte> stored(std::string_view name, SafetensorsDType dtype,
                                    const std::vector<Index>& shape) const {
    if (!has_tensor(name)) fail("tensor ", name, " is missing");
    const SafetensorsTensor& tensor = file_.tensor(name);
    if (tensor.dtype != dtype || tensor.shape != shape)
      fail("tensor ", name, " is ", name_of(tensor.dtype), " ", shape_text(tensor.shape),
           ", expected ", name_of(dtype), " ", shape_text(shape));
    return tensor.bytes;
  }

  /// A weight or bias that `used` does not name means something that is not computed here.
  void refuse_other_weights(const std::set<std::string>& used) const {
    for (const auto& [name, tensor] : tensors_)
      if ((name.ends_with(".weight") || name.ends_with(".bias")) && !used.contains(name))
        fail("tensor ", name, " is not used by this configuration");
    // Those of another type are not among tensors_: tensor() refuses them.
    for (const auto& [name, stored] : file_.tensors())
      if (name.ends_with(".weight") || name.ends_with(".bias")) static_cast<void>(tensor(name));
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_runtime(path(), ": ", parts...);
  }

 private:
  // A tensor that is not there as numbers: see stored() for those of bytes.
  [[noreturn]] void refuse_missing(std::string_view name) const {
    if (has_tensor(name))
      fail("tensor ", name, " has dtype ", name_of(file_.tensor(name).dtype), ", expected F32");
    fail("tensor ", name, " is missing");
  }

  static WeightView stored_values(const SafetensorsTensor& tensor) {
    const Index elements = std::ssize(tensor.bytes) / bytes_of(tensor.dtype);
    return {tensor.bytes.data(), *weight_format_of(tensor.dtype), 1, elements};
  }

  // A generated tensor that is stored as well, to check generators with, must be the same.
  void add(const GeneratedTensor& generated) {
    AlignedBuffer<bfloat16> values = generate(generated, path());
    const auto elements = static_cast<Index>(values.size());
    const auto found = tensors_.find(generated.name);
    if (found == tensors_.end()) {
      tensors_[generated.name] = {generated.name, generated.shape, {values.data(), 1, elements}};
    } else {
      const auto stored = tensor(generated.name, generated.shape).matrix(1, elements);
      for (Index i = 0; i < elements; ++i)
        if (stored(0, i) != static_cast<float>(values[static_cast<std::size_t>(i)]))
          fail("tensor ", generated.name, " is stored as well as generated, and differs at ", i);
    }
    generated_.push_back(std::move(values));
  }

  SafetensorsFile file_;
  std::vector<AlignedBuffer<bfloat16>> generated_;
  std::map<std::string, CaseTensor, std::less<>> tensors_;
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_CASE_FILE_HPP_
