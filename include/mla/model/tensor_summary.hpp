#ifndef MLA_MODEL_TENSOR_SUMMARY_HPP_
#define MLA_MODEL_TENSOR_SUMMARY_HPP_

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/matrix_reader.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/io/safetensors_dtype.hpp"

namespace mla {

/// Tensors of a checkpoint that differ in their numbers only: those of all layers and experts.
struct TensorGroup {
  std::string name;    ///< with * for a number: "model.layers.*.mlp.gate.weight"
  std::string format;  ///< of WeightFormat, or the file's own name of what is no weight: "I64"
  Index count = 0;     ///< matrices and vectors; the scales of a matrix belong to it
  Index elements = 0;  ///< numbers in all of them, without scales
  Index bytes = 0;     ///< with scales

  bool operator==(const TensorGroup&) const = default;
};

namespace detail {

/// `name` with * for each part that is a number.
inline std::string without_numbers(std::string_view name) {
  std::string pattern;
  while (!name.empty()) {
    const std::string_view part = name.substr(0, name.find('.'));
    const bool number =
        !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    pattern += number ? std::string_view("*") : part;
    if (part.size() < name.size()) pattern += '.';
    name.remove_prefix(std::min(name.size(), part.size() + 1));
  }
  return pattern;
}

/// The matrix whose scales or zero points `name` has; nothing where it is no such tensor.
inline std::optional<std::string> matrix_of_part(std::string_view name) {
  for (const std::string_view suffix :
       {"_scale", "_scale_inv", "_shape", "_zero_point", "_global_scale"})
    if (name.ends_with(suffix)) return std::string(name.substr(0, name.size() - suffix.size()));
  for (const std::string_view part : {"input_scale", "input_global_scale"})
    if (name.ends_with(part))
      return std::string(name.substr(0, name.size() - part.size())) + "weight";
  return std::nullopt;
}

inline Index elements_of(const SafetensorsTensor& tensor,
                         const std::optional<WeightFormat>& format) {
  const auto size = static_cast<Index>(tensor.bytes.size());
  if (format && info_of(*format).bits == 4) return 2 * size;
  return size / bytes_of(tensor.dtype);
}

}  // namespace detail

/// The groups of `tensors`, by name. A matrix that is quantised counts once, with its scales.
inline std::vector<TensorGroup> summarise(const TensorMap& tensors) {
  std::map<std::pair<std::string, std::string>, TensorGroup> groups;
  std::map<std::string, TensorGroup*, std::less<>> matrices;  // quantised ones
  for (const auto& [name, tensor] : tensors) {
    const std::optional<WeightFormat> codes = detail::quantised_format_of(*tensor);
    if (!codes && detail::matrix_of_part(name)) continue;
    std::string matrix = name;
    if (const std::string_view packed = "_packed"; codes && matrix.ends_with(packed))
      matrix.resize(matrix.size() - packed.size());
    const std::optional<WeightFormat> format = codes ? codes : weight_format_of(tensor->dtype);
    const std::string pattern = detail::without_numbers(matrix);
    const std::string text(format ? name_of(*format) : name_of(tensor->dtype));
    TensorGroup& group = groups[{pattern, text}];
    group.name = pattern;
    group.format = text;
    ++group.count;
    group.elements += detail::elements_of(*tensor, format);
    group.bytes += static_cast<Index>(tensor->bytes.size());
    matrices.emplace(matrix, &group);
  }
  for (const auto& [name, tensor] : tensors) {
    if (detail::quantised_format_of(*tensor)) continue;
    const std::optional<std::string> matrix = detail::matrix_of_part(name);
    if (!matrix) continue;
    const auto found = matrices.find(*matrix);
    TensorGroup& group =
        found != matrices.end()
            ? *found->second
            : groups[{detail::without_numbers(name), std::string(name_of(tensor->dtype))}];
    if (found == matrices.end()) {  // of a matrix that is not there
      group.name = detail::without_numbers(name);
      group.format = name_of(tensor->dtype);
      ++group.count;
      group.elements += detail::elements_of(*tensor, std::nullopt);
    }
    group.bytes += static_cast<Index>(tensor->bytes.size());
  }
  std::vector<TensorGroup> result;
  result.reserve(groups.size());
  for (auto& [key, group] : groups) result.push_back(std::move(group));
  return result;
}

}  // namespace mla

#endif  // MLA_MODEL_TENSOR_SUMMARY_HPP_
