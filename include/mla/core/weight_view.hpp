#ifndef MLA_CORE_WEIGHT_VIEW_HPP_
#define MLA_CORE_WEIGHT_VIEW_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/float8.hpp"
#include "mla/core/tensor.hpp"

// What a weight is: a matrix in a format that is known at run time, in somebody else's memory.
//
// A format owes one function, widen(): a block of the matrix to float32. With it and a row in the
// table below it is right on every instruction set and in every shape. Kernels that are faster for
// a format come on top (simd/kernels.hpp) and compute the same bits.

namespace mla {

/// How the numbers of a weight are stored. Where Scales belong to them, a weight is its code times
/// the scale of its block, rounded to float32 once.
enum class WeightFormat : std::uint8_t {
  float32,
  bfloat16,
  float16,
  fp8_e4m3,  ///< decode_e4m3; a NaN code is a NaN weight
  int8,      ///< two's complement, -128 to 127
  /// Two codes per byte, even columns in the low half: offset binary, code = half - 8, or half -
  /// the zero point of its block
  int4,
  fp4_e2m1,  ///< two per byte, even columns in the low half: decode_e2m1 (MXFP4, NVFP4)
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
  extra,  ///< the program's own, see kExtraWeightFormat
#endif
};

/// How scales are stored.
enum class ScaleFormat : std::uint8_t {
  float32,
  bfloat16,
  float16,
  fp8_e8m0,  ///< powers of two, decode_e8m0: MXFP4, true ue8m0 scales
  fp8_e4m3,  ///< decode_e4m3: NVFP4
};

/// Bytes of a stored scale.
constexpr Index bytes_of(ScaleFormat format) noexcept {
  switch (format) {
    case ScaleFormat::float32:
      return 4;
    case ScaleFormat::bfloat16:
    case ScaleFormat::float16:
      return 2;
    case ScaleFormat::fp8_e8m0:
    case ScaleFormat::fp8_e4m3:
      return 1;
  }
  __builtin_unreachable();
}

/// The scales of a matrix: one number per block of rows x columns, row-major. The last blocks of
/// a matrix may be smaller. A block of all rows or all columns makes a scale per column, per row
/// (channel) or for all.
struct Scales {
  const void* data = nullptr;  ///< [blocks of rows, blocks of columns]
  ScaleFormat format = ScaleFormat::float32;
  Index block_rows = 1;
  Index block_cols = 1;
  Index stride = 0;  ///< scales from one row of blocks to the next
  /// All stored scales are multiplied by it, and the product rounded to float32, before a code is
  /// multiplied: NVFP4's second, global scale. 1 everywhere else.
  float factor = 1.0f;
  /// Of int4 with zero points, nullptr without: [ceil(rows / 8), blocks of columns] words, rows of
  /// words `stride` apart. Row r of the matrix has the four bits from bit 4 * (r % 8) on of word
  /// [r / 8]. block_rows is 1.
  const std::uint32_t* zero_points = nullptr;

  explicit operator bool() const noexcept { return data != nullptr; }

  /// The scale that is stored as number i, times `factor`.
  float at(Index i) const noexcept {
    switch (format) {
      case ScaleFormat::float32:
        return static_cast<const float*>(data)[i] * factor;
      case ScaleFormat::bfloat16:
        return static_cast<float>(static_cast<const bfloat16*>(data)[i]) * factor;
      case ScaleFormat::float16:
        return static_cast<float>(static_cast<const float16*>(data)[i]) * factor;
      case ScaleFormat::fp8_e8m0:
        return decode_e8m0(static_cast<const std::uint8_t*>(data)[i]) * factor;
      case ScaleFormat::fp8_e4m3:
        return decode_e4m3(static_cast<const std::uint8_t*>(data)[i]) * factor;
    }
    __builtin_unreachable();
  }
};

struct WeightView;

/// What the library knows of a weight format.
struct WeightFormatInfo {
  std::string_view name;  ///< in messages, files and programs
  int bits;               ///< per element, without scales
  bool scaled;            ///< whether Scales belong to it
  /// out[r][c] = element [r, c] of `block` in float32, its scale applied: code times scale, rounded
  /// once. out is [block.rows, block.cols].
  void (*widen)(const WeightView& block, MatrixView<float> out) noexcept;
};

constexpr const WeightFormatInfo& info_of(WeightFormat format) noexcept;
constexpr std::string_view name_of(WeightFormat format) noexcept;

template <StorageElement T>
inline constexpr WeightFormat kWeightFormatOf =
    std::is_same_v<T, float>      ? WeightFormat::float32
    : std::is_same_v<T, bfloat16> ? WeightFormat::bfloat16
                                  : WeightFormat::float16;

/// Weights [rows, cols] = [out_features, in_features], row-major as in the checkpoint; not owned
/// and never copied. A vector is a matrix of one row. A view may be a block of a larger matrix:
/// rows and columns are then a range of the matrix's, and scales are still counted from the
/// matrix's corner.
struct WeightView {
  const void* data = nullptr;  ///< element [0, 0] of the matrix
  WeightFormat format = WeightFormat::float32;
  Index rows = 0;       ///< of the view
  Index cols = 0;       ///< of the view
  Index stride = 0;     ///< elements from one row of the matrix to the next
  Index first_row = 0;  ///< place of the view in the matrix
  Index first_col = 0;
  Scales scales = {};

  WeightView() = default;

  /// A dense matrix in memory that must outlive the view.
  template <StorageElement T>
  WeightView(const T* elements, Index row_count, Index col_count)
      : WeightView(elements, kWeightFormatOf<T>, row_count, col_count) {}
  WeightView(const void* elements, WeightFormat element_format, Index row_count, Index col_count)
      : data(elements), format(element_format), rows(row_count), cols(col_count), stride(cols) {}
  /// The same with scales, as formats with `WeightFormatInfo::scaled` need them.
  WeightView(const void* elements, WeightFormat element_format, Index row_count, Index col_count,
             const Scales& element_scales)
      : WeightView(elements, element_format, row_count, col_count) {
    scales = element_scales;
  }

  /// A view of a matrix's elements in place: rows may lie apart.
  template <StorageElement T>
  WeightView(MatrixView<const T> matrix)  // NOLINT(google-explicit-constructor)
      : WeightView(matrix.data, matrix.rows, matrix.cols) {
    stride = matrix.stride;
  }
  template <StorageElement T>
  WeightView(MatrixView<T> matrix)  // NOLINT(google-explicit-constructor)
      : WeightView(MatrixView<const T>(matrix)) {}

  /// An Eigen matrix, or a vector as one row, which must outlive the view.
  explicit WeightView(const RowMajorMatrix& matrix)
      : WeightView(matrix.data(), matrix.rows(), matrix.cols()) {}
  explicit WeightView(const std::vector<float>& vector)
      : WeightView(vector.data(), 1, static_cast<Index>(vector.size())) {}
  explicit WeightView(RowMajorMatrix&&) = delete;
  explicit WeightView(std::vector<float>&&) = delete;

  explicit operator bool() const noexcept { return data != nullptr; }

  WeightView row_range(Index first, Index count) const noexcept {
    WeightView view = *this;
    view.first_row += first;
    view.rows = count;
    return view;
  }
  WeightView col_range(Index first, Index count) const noexcept {
    WeightView view = *this;
    view.first_col += first;
    view.cols = count;
    return view;
  }

  /// Bytes of the view's elements, without scales; of two elements that share a byte, all of it.
  Index bytes() const noexcept {
    const Index bits = info_of(format).bits;
    return rows * (((first_col + cols) * bits + 7) / 8 - first_col * bits / 8);
  }

  /// Bytes of the scales of all blocks that the view touches, and of their zero points.
  Index scale_bytes() const noexcept {
    if (!scales || rows == 0 || cols == 0) return 0;
    const auto blocks = [](Index first, Index count, Index size) {
      return (first + count - 1) / size - first / size + 1;
    };
    const Index across = blocks(first_col, cols, scales.block_cols);
    const Index words = scales.zero_points ? blocks(first_row, rows, 8) * across : 0;
    return blocks(first_row, rows, scales.block_rows) * across * bytes_of(scales.format) +
           words * static_cast<Index>(sizeof(std::uint32_t));
  }

  /// The elements of a format that is a plain T.
  template <StorageElement T>
  MatrixView<const T> as() const noexcept {
    return {static_cast<const T*>(data) + first_row * stride + first_col, rows, cols, stride};
  }

  /// Byte that element [r, c] of the view begins in.
  const std::byte* byte_of(Index r, Index c) const noexcept {
    const Index element = (first_row + r) * stride + first_col + c;
    return static_cast<const std::byte*>(data) + element * info_of(format).bits / 8;
  }

  /// Scale of element [r, c] of the view, in float32.
  float scale_of(Index r, Index c) const noexcept {
    const Index i =
        (first_row + r) / scales.block_rows * scales.stride + (first_col + c) / scales.block_cols;
    return scales.at(i);
  }

  /// What is taken off the four bits of int4 element [r, c] of the view.
  int zero_point_of(Index r, Index c) const noexcept {
    if (!scales.zero_points) return 8;
    const Index row = first_row + r;
    const std::uint32_t word =
        scales.zero_points[row / 8 * scales.stride + (first_col + c) / scales.block_cols];
    return static_cast<int>(word >> (row % 8 * 4) & 15u);
  }

  /// The four bits of element [r, c] of a format that has two of them in a byte.
  unsigned half_byte_of(Index r, Index c) const noexcept {
    const auto byte = std::to_integer<unsigned>(*byte_of(r, c));
    return (first_col + c) % 2 == 0 ? byte & 15u : byte >> 4;
  }
};

namespace detail {

// The definitions: kernels make the same numbers faster, all but a few.

template <StorageElement T>
void widen_elements(const WeightView& block, MatrixView<float> out) noexcept {
  const MatrixView<const T> from = block.as<T>();
  for (Index r = 0; r < from.rows; ++r)
    for (Index c = 0; c < from.cols; ++c) out(r, c) = static_cast<float>(from(r, c));
}

// out[r][c] = code(r, c, zero point of the block) * scale of the block.
template <class Code>
void widen_scaled(const WeightView& block, MatrixView<float> out, const Code& code) noexcept {
  const Index width = block.scales.block_cols;
  for (Index r = 0; r < block.rows; ++r)
    for (Index c = 0, end; c < block.cols; c = end) {
      const Index rest = width - (block.first_col + c) % width;  // of the block of columns
      end = rest < block.cols - c ? c + rest : block.cols;
      const float scale = block.scale_of(r, c);
      const int zero_point = block.zero_point_of(r, c);
      for (Index i = c; i < end; ++i) out(r, i) = code(r, i, zero_point) * scale;
    }
}

[[gnu::cold]] inline void widen_fp8_e4m3(const WeightView& block, MatrixView<float> out) noexcept {
  static constexpr auto kDecoded = [] {
    std::array<float, 256> table{};
    for (unsigned code = 0; code < 256; ++code)
      table[code] = decode_e4m3(static_cast<std::uint8_t>(code));
    return table;
  }();
  widen_scaled(block, out, [&](Index r, Index c, int) {
    return kDecoded[std::to_integer<std::size_t>(*block.byte_of(r, c))];
  });
}

[[gnu::cold]] inline void widen_int8(const WeightView& block, MatrixView<float> out) noexcept {
  widen_scaled(block, out, [&](Index r, Index c, int) {
    return static_cast<float>(std::to_integer<std::int8_t>(*block.byte_of(r, c)));
  });
}

[[gnu::cold]] inline void widen_int4(const WeightView& block, MatrixView<float> out) noexcept {
  widen_scaled(block, out, [&](Index r, Index c, int zero_point) {
    return static_cast<float>(static_cast<int>(block.half_byte_of(r, c)) - zero_point);
  });
}

[[gnu::cold]] inline void widen_fp4_e2m1(const WeightView& block, MatrixView<float> out) noexcept {
  widen_scaled(block, out, [&](Index r, Index c, int) {
    return decode_e2m1(static_cast<std::uint8_t>(block.half_byte_of(r, c)));
  });
}

}  // namespace detail
}  // namespace mla

// A program may bring one format of its own: MLA_EXTRA_WEIGHT_FORMAT is then the name of a header,
// in quotes, that defines `inline constexpr mla::WeightFormatInfo mla::kExtraWeightFormat`. All
// files of the program must define it alike.
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
#include MLA_EXTRA_WEIGHT_FORMAT
#endif

namespace mla {

/// A row for each WeightFormat, in its order.
inline constexpr WeightFormatInfo kWeightFormats[] = {
    {"f32", 32, false, &detail::widen_elements<float>},
    {"bf16", 16, false, &detail::widen_elements<bfloat16>},
    {"f16", 16, false, &detail::widen_elements<float16>},
    {"fp8", 8, true, &detail::widen_fp8_e4m3},
    {"int8", 8, true, &detail::widen_int8},
    {"int4", 4, true, &detail::widen_int4},
    {"fp4", 4, true, &detail::widen_fp4_e2m1},
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
    kExtraWeightFormat,
#endif
};
inline constexpr std::size_t kWeightFormatCount = std::size(kWeightFormats);
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
static_assert(static_cast<std::size_t>(WeightFormat::extra) + 1 == kWeightFormatCount);
#else
static_assert(static_cast<std::size_t>(WeightFormat::fp4_e2m1) + 1 == kWeightFormatCount);
#endif

constexpr const WeightFormatInfo& info_of(WeightFormat format) noexcept {
  return kWeightFormats[static_cast<std::size_t>(format)];
}
constexpr std::string_view name_of(WeightFormat format) noexcept { return info_of(format).name; }

/// Throws std::invalid_argument unless `weight` is [rows, cols] in a format that exists, with the
/// scales that it needs. `name` is the tensor's, for the message.
inline void require_shape(std::string_view name, const WeightView& weight, Index rows, Index cols) {
  require(bool(weight), "tensor ", name, " is missing, expected [", rows, ", ", cols, "]");
  require(weight.rows == rows && weight.cols == cols, "tensor ", name, " must have shape [", rows,
          ", ", cols, "], got [", weight.rows, ", ", weight.cols, "]");
  require(static_cast<std::size_t>(weight.format) < kWeightFormatCount, "tensor ", name,
          " has weight format ", static_cast<int>(weight.format), ", which does not exist");
  require(weight.stride >= weight.first_col + cols, "tensor ", name, " has a stride of ",
          weight.stride, " elements, rows need ", weight.first_col + cols);
  const WeightFormatInfo& info = info_of(weight.format);
  require(weight.stride * info.bits % 8 == 0, "tensor ", name, " has a stride of ", weight.stride,
          " elements of ", info.bits, " bits, which is not a whole number of bytes");
  require(bool(weight.scales) == info.scaled, "tensor ", name, " of format ", info.name,
          info.scaled ? " needs scales" : " has scales, which this format does not use");
  if (!info.scaled) return;
  const Scales& scales = weight.scales;
  require(
      scales.block_rows > 0 && scales.block_cols > 0 &&
          scales.stride >= (weight.first_col + cols + scales.block_cols - 1) / scales.block_cols,
      "tensor ", name, " has scales for blocks of ", scales.block_rows, " x ", scales.block_cols,
      " with a stride of ", scales.stride, ", which do not cover ", cols, " columns");
  require(!scales.zero_points || (weight.format == WeightFormat::int4 && scales.block_rows == 1),
          "tensor ", name, " of format ", info.name, " has zero points for blocks of ",
          scales.block_rows, " rows; int4 has them, for each row");
}

/// A weight vector [1, n] of any format in float32.
inline std::vector<float> to_float_vector(const WeightView& weight) {
  std::vector<float> values(static_cast<std::size_t>(weight.cols));
  info_of(weight.format).widen(weight, {values.data(), 1, weight.cols});
  return values;
}

}  // namespace mla

#endif  // MLA_CORE_WEIGHT_VIEW_HPP_
