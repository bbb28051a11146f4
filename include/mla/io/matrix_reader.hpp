#ifndef MLA_IO_MATRIX_READER_HPP_
#define MLA_IO_MATRIX_READER_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/quantization_config.hpp"
#include "mla/io/safetensors.hpp"

namespace mla {

/// Tensors of a checkpoint by name.
using TensorMap = std::map<std::string, const SafetensorsTensor*, std::less<>>;

namespace detail {

/// One matrix out of the tensors that it is stored in. `X.weight` of F32, BF16 or F16 is all there
/// is of a plain one. Of quantised ones there are
///   fp8, int8  X.weight of F8_E4M3 or I8, X.weight_scale or (DeepSeek) X.weight_scale_inv
///   int4       X.weight_packed of I32, X.weight_scale, X.weight_shape, X.weight_zero_point
///   fp4        X.weight_packed of U8, X.weight_scale, X.weight_global_scale (NVFP4)
/// Views are of the tensors where they are; only scales are read here, to check them.
class MatrixReader {
 public:
  /// `origin` begins every message. The quantisation is std::nullopt where there is no config.json.
  /// With TensorData::untouched scales are not checked.
  MatrixReader(const std::string& origin, const TensorMap& tensors,
               const std::optional<QuantizationConfig>& quantization, std::string_view name,
               TensorData use = TensorData::read)
      : origin_(origin), tensors_(tensors), quantization_(quantization), name_(name), use_(use) {}

  bool exists() const { return find("") || find("_packed"); }

  /// What is there of the matrix, and of its activations, which are not quantised here.
  std::vector<std::string> parts() const {
    std::vector<std::string> parts;
    const SafetensorsTensor* weight = find("");
    const auto add = [&](const std::string& name) {
      if (tensors_.contains(name)) parts.push_back(name);
    };
    add(name_);
    if (weight && weight_format_of(weight->dtype)) return parts;
    for (const char* suffix :
         {"_packed", "_scale", "_scale_inv", "_shape", "_zero_point", "_global_scale"})
      add(name_ + suffix);
    if (const std::string_view weight_name = "weight"; name_.ends_with(weight_name))
      for (const char* part : {"input_scale", "input_global_scale"})
        add(name_.substr(0, name_.size() - weight_name.size()) + part);
    return parts;
  }

  /// [rows, cols]. Throws std::runtime_error naming the tensor that is missing, has another shape
  /// or type than it must have, or contradicts config.json; and the scale that is not a positive
  /// number.
  WeightView read(Index rows, Index cols) const {
    const SafetensorsTensor* plain = find("");
    const SafetensorsTensor* packed = find("_packed");
    if (!plain && !packed) fail("", " is missing");
    if (plain && packed) fail("", " is there twice, also as ", packed->name);
    if (find("_g_idx")) fail("_g_idx", ": inputs in another order (actorder) are not supported");
    if (find("_zero_point") && !(packed && packed->dtype == SafetensorsDType::int32))
      fail("_zero_point", ": only int4 weights may have zero points");
    if (packed) return read_packed(*packed, rows, cols);
    require_shape_of(*plain, {rows, cols});
    if (plain->dtype == SafetensorsDType::float8_e4m3)
      return read_bytes(*plain, WeightFormat::fp8_e4m3, rows, cols);
    if (plain->dtype == SafetensorsDType::int8)
      return read_bytes(*plain, WeightFormat::int8, rows, cols);
    const std::optional<WeightFormat> format = weight_format_of(plain->dtype);
    if (!format)
      fail("", " has dtype ", name_of(plain->dtype), ", which cannot be used as a weight here");
    return {plain->bytes.data(), *format, rows, cols};
  }

  /// How the matrix is quantised, as config.json says. Throws as read().
  WeightScheme scheme(WeightFormat format, Index rows, Index cols) const {
    const char* const suffix = find("_scale") ? "_scale" : "_scale_inv";
    return scheme_of(format, find("_zero_point") != nullptr, get(suffix), rows, cols, std::nullopt);
  }

 private:
  const SafetensorsTensor* find(const std::string& suffix) const {
    const auto found = tensors_.find(name_ + suffix);
    return found == tensors_.end() ? nullptr : found->second;
  }
  const SafetensorsTensor& get(const std::string& suffix) const {
    const SafetensorsTensor* tensor = find(suffix);
    if (!tensor) fail(suffix, " is missing");
    return *tensor;
  }
  template <class... Parts>
  [[noreturn]] void fail(const std::string& suffix, const Parts&... parts) const {
    throw_runtime(origin_, ": tensor ", name_, suffix, parts...);
  }
  void require_shape_of(const SafetensorsTensor& tensor, const std::vector<Index>& shape) const {
    if (tensor.shape != shape)
      throw_runtime(origin_, ": tensor ", tensor.name, " has shape ", shape_text(tensor.shape),
                    ", expected ", shape_text(shape));
  }

  WeightView read_bytes(const SafetensorsTensor& codes, WeightFormat format, Index rows,
                        Index cols) const {
    // Channel-wise ones have "_scale", DeepSeek's blocks "_scale_inv", which is not an inverse.
    const bool block = find("_scale_inv") != nullptr;
    if (block && find("_scale")) fail("_scale", " is there twice, also as ", name_, "_scale_inv");
    const bool by_blocks = block || (!find("_scale") && format == WeightFormat::fp8_e4m3);
    const SafetensorsTensor& scale = get(by_blocks ? "_scale_inv" : "_scale");
    const WeightScheme scheme = scheme_of(format, false, scale, rows, cols,
                                          block ? std::optional<Index>(128) : std::nullopt);
    return {codes.bytes.data(), format, rows, cols, scales_of(scale, scheme, rows, cols, 1.0f)};
  }

  WeightView read_packed(const SafetensorsTensor& codes, Index rows, Index cols) const {
    if (codes.dtype == SafetensorsDType::uint8) return read_fp4(codes, rows, cols);
    if (codes.dtype != SafetensorsDType::int32)
      fail("_packed", " has dtype ", name_of(codes.dtype), ", expected I32 or U8");
    constexpr Index kCodes = 8;  // in 32 bits
    check_stored_shape(rows, cols);
    require_shape_of(codes, {rows, count_of(cols, kCodes)});
    const SafetensorsTensor& scale = get("_scale");
    const SafetensorsTensor* zero_point = find("_zero_point");
    const WeightScheme scheme =
        scheme_of(WeightFormat::int4, zero_point != nullptr, scale, rows, cols, std::nullopt);
    WeightView view(codes.bytes.data(), WeightFormat::int4, rows, cols,
                    scales_of(scale, scheme, rows, cols, 1.0f));
    view.stride = codes.shape[1] * kCodes;
    if (zero_point) {
      require_shape_of(*zero_point, {count_of(rows, kCodes), view.scales.stride});
      view.scales.zero_points =
          reinterpret_cast<const std::uint32_t*>(values_of<std::int32_t>(*zero_point).data());
    }
    return view;
  }

  // X.weight_shape holds [rows, cols], which the packed width only bounds.
  void check_stored_shape(Index rows, Index cols) const {
    const SafetensorsTensor& shape = get("_shape");
    require_shape_of(shape, {2});
    if (use_ == TensorData::untouched) return;
    const auto check = [&](auto stored) {
      if (stored[0] != rows || stored[1] != cols)
        fail("_shape", " is [", stored[0], ", ", stored[1], "], expected [", rows, ", ", cols, "]");
    };
    if (shape.dtype == SafetensorsDType::int64) return check(shape.values<std::int64_t>());
    check(values_of<std::int32_t>(shape));
  }

  // MXFP4 has powers of two for 32 inputs. NVFP4 has F8_E4M3 for 16, all divided by one number.
  WeightView read_fp4(const SafetensorsTensor& codes, Index rows, Index cols) const {
    require_shape_of(codes, {rows, count_of(cols, 2)});
    const SafetensorsTensor& scale = get("_scale");
    const bool nv = scale.dtype == SafetensorsDType::float8_e4m3;
    float factor = 1.0f;
    if (nv) {
      const SafetensorsTensor& global = get("_global_scale");
      if (!global.shape.empty()) require_shape_of(global, {1});
      const std::span<const float> values = values_of<float>(global);
      const float divisor = use_ == TensorData::untouched ? 1.0f : values[0];
      factor = 1.0f / divisor;
      if (!(divisor > 0.0f) || !std::isfinite(divisor) || !std::isfinite(factor) || factor == 0.0f)
        fail("_global_scale", " must be a positive number, got ", divisor);
    }
    const WeightScheme scheme =
        scheme_of(WeightFormat::fp4_e2m1, false, scale, rows, cols, nv ? 16 : 32);
    WeightView view(codes.bytes.data(), WeightFormat::fp4_e2m1, rows, cols,
                    scales_of(scale, scheme, rows, cols, factor));
    view.stride = codes.shape[1] * 2;
    return view;
  }

  // The element type is the format's: std::runtime_error with the file otherwise.
  template <class T>
  std::span<const T> values_of(const SafetensorsTensor& tensor) const {
    constexpr auto wanted = safetensors_dtype_of<T>();
    if (tensor.dtype != *wanted)
      throw_runtime(origin_, ": tensor ", tensor.name, " has dtype ", name_of(tensor.dtype),
                    ", expected ", name_of(*wanted));
    return tensor.values<T>();
  }

  // The scheme of config.json that the shape of the scales fits. Without a config.json `usual`
  // rows and columns share a scale, or as many as divide the matrix evenly.
  WeightScheme scheme_of(WeightFormat format, bool zero_points, const SafetensorsTensor& scale,
                         Index rows, Index cols, std::optional<Index> usual) const {
    if (!quantization_) {
      const WeightScheme scheme = implied_scheme(format, zero_points, scale, rows, cols, usual);
      if (!fits(scheme, scale.shape, rows, cols))
        require_shape_of(scale, shape_for(scheme, rows, cols));
      return scheme;
    }
    std::string expected;
    for (const WeightScheme& scheme : quantization_->schemes) {
      if (scheme.format != format) continue;
      if (scheme.zero_points != zero_points) {
        if (expected.empty())
          expected = zero_points ? "no zero points (symmetric)" : "zero points (not symmetric)";
        continue;
      }
      if (fits(scheme, scale.shape, rows, cols)) return scheme;
      expected =
          (expected.empty() ? "" : expected + " or ") + shape_text(shape_for(scheme, rows, cols));
    }
    if (expected.empty())
      fail("", " is ", name_of(format), ", but config.json has no such quantization_config");
    throw_runtime(origin_, ": tensor ", scale.name, " has shape ", shape_text(scale.shape),
                  zero_points ? " and zero points" : "", ", config.json expects ", expected);
  }

  WeightScheme implied_scheme(WeightFormat format, bool zero_points, const SafetensorsTensor& scale,
                              Index rows, Index cols, std::optional<Index> usual) const {
    if (format == WeightFormat::fp4_e2m1) return {format, 1, *usual};
    if (usual) return {format, *usual, *usual, zero_points};
    if (scale.shape.size() < 2) return {format, scale.shape == std::vector{rows} ? 1 : 0, 0};
    const auto even = [&](Index size, Index blocks) {
      if (blocks < 1 || size % blocks != 0)
        throw_runtime(origin_, ": tensor ", scale.name, " has shape ", shape_text(scale.shape),
                      ", whose groups do not divide [", rows, ", ", cols, "]");
      return size / blocks;
    };
    if (scale.shape.size() > 2) require_shape_of(scale, {rows, 1});
    return {format, even(rows, scale.shape[0]), even(cols, scale.shape[1]), zero_points};
  }

  // Blocks of `size` that cover `all`.
  static Index count_of(Index all, Index size) { return all / size + (all % size != 0); }
  static Index block_size(Index size, Index all) {
    return size == 0 ? std::max<Index>(all, 1) : size;
  }
  static std::vector<Index> shape_for(const WeightScheme& scheme, Index rows, Index cols) {
    return {count_of(rows, block_size(scheme.block_rows, rows)),
            count_of(cols, block_size(scheme.block_cols, cols))};
  }
  // A scale per row may be stored as [rows], one for all as [1] or as a number.
  static bool fits(const WeightScheme& scheme, const std::vector<Index>& shape, Index rows,
                   Index cols) {
    const std::vector<Index> wanted = shape_for(scheme, rows, cols);
    if (shape == wanted) return true;
    if (scheme.block_cols != 0) return false;
    return shape == std::vector{wanted[0]} || (scheme.block_rows == 0 && shape.empty());
  }

  Scales scales_of(const SafetensorsTensor& tensor, const WeightScheme& scheme, Index rows,
                   Index cols, float factor) const {
    const std::vector<Index> shape = shape_for(scheme, rows, cols);
    const Scales scales = {.data = tensor.bytes.data(),
                           .format = scale_format_of(tensor, scheme.format),
                           .block_rows = block_size(scheme.block_rows, rows),
                           .block_cols = block_size(scheme.block_cols, cols),
                           .stride = shape[1],
                           .factor = factor};
    if (use_ == TensorData::untouched) return scales;
    const Index bad = first_bad(scales, shape[0] * shape[1]);
    if (bad >= 0)
      throw_runtime(origin_, ": tensor ", tensor.name, " must be positive numbers, got ",
                    scales.at(bad), " at [", bad / shape[1], ", ", bad % shape[1], "]");
    return scales;
  }

  // The first of `count` scales that is no positive number, -1 if there is none. There may be
  // thousands of millions of them: looks at bits, which begin with the sign and end before
  // infinity.
  static Index first_bad(const Scales& scales, Index count) {
    const auto first = [&](auto infinity) {
      using Bits = decltype(infinity);
      const auto* const bits = static_cast<const Bits*>(scales.data);
      const auto* const found = std::find_if(bits, bits + count, [&](Bits scale) {
        return static_cast<Bits>(scale - 1) >= static_cast<Bits>(infinity - 1);
      });
      return found == bits + count ? Index{-1} : found - bits;
    };
    switch (scales.format) {
      case ScaleFormat::float32:
        return first(std::uint32_t{0x7f800000});
      case ScaleFormat::bfloat16:
        return first(std::uint16_t{0x7f80});
      case ScaleFormat::float16:
        return first(std::uint16_t{0x7c00});
      case ScaleFormat::fp8_e8m0:
      case ScaleFormat::fp8_e4m3:  // small, and times a factor: decoded
        for (Index i = 0; i < count; ++i)
          if (const float scale = scales.at(i); !(scale > 0.0f) || !std::isfinite(scale)) return i;
        return -1;
    }
    __builtin_unreachable();
  }

  ScaleFormat scale_format_of(const SafetensorsTensor& scale, WeightFormat format) const {
    const bool fp4 = format == WeightFormat::fp4_e2m1;
    switch (scale.dtype) {
      case SafetensorsDType::float32:
        return ScaleFormat::float32;
      case SafetensorsDType::bfloat16:
        return ScaleFormat::bfloat16;
      case SafetensorsDType::float16:
        return ScaleFormat::float16;
      case SafetensorsDType::float8_e8m0:
      case SafetensorsDType::uint8:  // MXFP4 and MXFP8 of compressed-tensors
        return ScaleFormat::fp8_e8m0;
      case SafetensorsDType::float8_e4m3:
        if (fp4) return ScaleFormat::fp8_e4m3;
        break;
      case SafetensorsDType::boolean:
      case SafetensorsDType::int8:
      case SafetensorsDType::float8_e5m2:
      case SafetensorsDType::int16:
      case SafetensorsDType::uint16:
      case SafetensorsDType::int32:
      case SafetensorsDType::uint32:
      case SafetensorsDType::int64:
      case SafetensorsDType::uint64:
      case SafetensorsDType::float64:
        break;
    }
    throw_runtime(origin_, ": tensor ", scale.name, " has dtype ", name_of(scale.dtype),
                  ", expected F32, BF16, F16 or F8_E8M0");
  }

  const std::string& origin_;
  const TensorMap& tensors_;
  const std::optional<QuantizationConfig>& quantization_;
  std::string name_;
  TensorData use_;
};

/// The format that a tensor is the codes of, if it is those of a quantised matrix.
inline std::optional<WeightFormat> quantised_format_of(const SafetensorsTensor& tensor) {
  const auto is = [&](SafetensorsDType dtype) { return tensor.dtype == dtype; };
  if (tensor.shape.size() != 2) return std::nullopt;
  if (tensor.name.ends_with("_packed")) {
    if (is(SafetensorsDType::int32)) return WeightFormat::int4;
    if (is(SafetensorsDType::uint8)) return WeightFormat::fp4_e2m1;
  }
  if (!tensor.name.ends_with("weight")) return std::nullopt;
  if (is(SafetensorsDType::float8_e4m3)) return WeightFormat::fp8_e4m3;
  if (is(SafetensorsDType::int8)) return WeightFormat::int8;
  return std::nullopt;
}

}  // namespace detail
}  // namespace mla

#endif  // MLA_IO_MATRIX_READER_HPP_
