#ifndef MLA_IO_SAFETENSORS_DTYPE_HPP_
#define MLA_IO_SAFETENSORS_DTYPE_HPP_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <type_traits>

#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"

namespace mla {

/// Element types of safetensors files, those with elements of whole bytes.
enum class SafetensorsDType {
  boolean,
  uint8,
  int8,
  float8_e4m3,  ///< no infinities, see decode_e4m3
  float8_e5m2,
  float8_e8m0,  ///< a power of two, see decode_e8m0
  int16,
  uint16,
  float16,
  bfloat16,
  int32,
  uint32,
  float32,
  int64,
  uint64,
  float64,
};

namespace detail {

struct SafetensorsDTypeInfo {
  std::string_view name;
  Index bytes;
  std::optional<WeightFormat> weight = {};  // what a weight of it is used as
};
inline constexpr SafetensorsDTypeInfo kSafetensorsDTypes[] = {
    {"BOOL", 1},
    {"U8", 1},
    {"I8", 1},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"F8_E8M0", 1},
    {"I16", 2},
    {"U16", 2},
    {"F16", 2, WeightFormat::float16},
    {"BF16", 2, WeightFormat::bfloat16},
    {"I32", 4},
    {"U32", 4},
    {"F32", 4, WeightFormat::float32},
    {"I64", 8},
    {"U64", 8},
    {"F64", 8},
};
static_assert(std::size(kSafetensorsDTypes) ==
                  static_cast<std::size_t>(SafetensorsDType::float64) + 1,
              "Every SafetensorsDType has a row, in the order of its enumerators.");

template <class T>
constexpr std::optional<SafetensorsDType> safetensors_dtype_of() noexcept {
  using enum SafetensorsDType;
  if (std::is_same_v<T, float>) return float32;
  if (std::is_same_v<T, mla::bfloat16>) return bfloat16;
  if (std::is_same_v<T, mla::float16>) return float16;
  if (std::is_same_v<T, std::int32_t>) return int32;
  if (std::is_same_v<T, std::int64_t>) return int64;
  return std::nullopt;
}

}  // namespace detail

/// The name in the file: "BF16", "F8_E4M3".
constexpr std::string_view name_of(SafetensorsDType dtype) noexcept {
  return detail::kSafetensorsDTypes[static_cast<int>(dtype)].name;
}
constexpr Index bytes_of(SafetensorsDType dtype) noexcept {
  return detail::kSafetensorsDTypes[static_cast<int>(dtype)].bytes;
}

/// The format of weights that are used as they are stored, none if they cannot be.
constexpr std::optional<WeightFormat> weight_format_of(SafetensorsDType dtype) noexcept {
  return detail::kSafetensorsDTypes[static_cast<int>(dtype)].weight;
}

}  // namespace mla

#endif  // MLA_IO_SAFETENSORS_DTYPE_HPP_
