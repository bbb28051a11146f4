#ifndef MLA_EXAMPLES_CONFORMANCE_MODEL_GOLDENS_HPP_
#define MLA_EXAMPLES_CONFORMANCE_MODEL_GOLDENS_HPP_

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/model/model_config.hpp"

namespace mla::conformance {

/// goldens.safetensors beside the weights of a model: tensors named PROMPT.what. Remembers what has
/// been read of it. All members throw std::runtime_error naming the file and the tensor.
class ModelGoldens {
 public:
  explicit ModelGoldens(const std::filesystem::path& path) : file_(path) {}

  const std::string& path() const noexcept { return file_.path(); }

  /// Every NAME with NAME.input_ids.
  std::vector<std::string> prompts() const {
    constexpr std::string_view kEnd = ".input_ids";
    std::vector<std::string> names;
    for (const auto& [name, tensor] : file_.tensors())
      if (name.ends_with(kEnd)) names.push_back(name.substr(0, name.size() - kEnd.size()));
    return names;
  }

  bool contains(const std::string& name) const { return file_.contains(name); }

  /// What follows `prefix` in the names that begin with it.
  std::vector<std::string> endings(const std::string& prefix) const {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : file_.tensors())
      if (name.starts_with(prefix)) result.push_back(name.substr(prefix.size()));
    return result;
  }

  /// I32 or I64.
  std::vector<Index> integers(const std::string& name) {
    const SafetensorsTensor& tensor = read(name);
    if (tensor.dtype == SafetensorsDType::int64) return convert<Index, std::int64_t>(tensor);
    if (tensor.dtype == SafetensorsDType::int32) return convert<Index, std::int32_t>(tensor);
    fail(name, " has dtype ", name_of(tensor.dtype), ", expected I32 or I64");
  }

  std::vector<TokenId> tokens(const std::string& name) {
    std::vector<TokenId> result;
    for (const Index id : integers(name)) {
      if (id < 0 || id > Index{1} << 30) fail(name, " has ", id, ", which is no token");
      result.push_back(static_cast<TokenId>(id));
    }
    return result;
  }

  /// F32, BF16 or F16.
  std::vector<float> floats(const std::string& name, const std::vector<Index>& shape) {
    const SafetensorsTensor& tensor = read(name);
    check_shape(name, shape);
    if (tensor.dtype == SafetensorsDType::float32) return convert<float, float>(tensor);
    if (tensor.dtype == SafetensorsDType::bfloat16) return convert<float, bfloat16>(tensor);
    if (tensor.dtype == SafetensorsDType::float16) return convert<float, float16>(tensor);
    fail(name, " has dtype ", name_of(tensor.dtype), ", expected F32, BF16 or F16");
  }

  void check_shape(const std::string& name, const std::vector<Index>& shape) const {
    if (const auto& actual = file_.tensor(name).shape; actual != shape)
      fail(name, " has shape ", shape_text(actual), ", but the model makes ", shape_text(shape));
  }

  /// Names of tensors that nothing has been compared with.
  std::vector<std::string> unread() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : file_.tensors())
      if (!read_.contains(name)) names.push_back(name);
    return names;
  }

  template <class... Parts>
  [[noreturn]] void fail(const std::string& name, const Parts&... parts) const {
    throw_runtime(path(), ": tensor ", name, parts...);
  }

 private:
  const SafetensorsTensor& read(const std::string& name) {
    read_.insert(name);
    return file_.tensor(name);
  }

  template <class To, class From>
  static std::vector<To> convert(const SafetensorsTensor& tensor) {
    const auto values = tensor.values<From>();
    std::vector<To> result(values.size());
    std::ranges::transform(values, result.begin(),
                           [](From value) { return static_cast<To>(value); });
    return result;
  }

  SafetensorsFile file_;
  std::set<std::string> read_;
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_MODEL_GOLDENS_HPP_
