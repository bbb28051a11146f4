#ifndef MLA_CORE_WEIGHT_VIEW_HPP_
#define MLA_CORE_WEIGHT_VIEW_HPP_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"

// What a weight is: a matrix in a format that is known at run time, in somebody else's memory.
//
// A format owes one function, widen(): a block of the matrix to float32. With it and a row in the
// table below it is right on every instruction set and in every shape. Kernels that are faster for
// a format come on top (simd/kernels.hpp) and compute the same bits.

namespace mla {

/// How the numbers of a weight are stored.
enum class WeightFormat : std::uint8_t {
  float32,
  bfloat16,
  float16,
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
  extra,  ///< the program's own, see kExtraWeightFormat
#endif
};

/// How scales are stored.
enum class ScaleFormat : std::uint8_t { float32, bfloat16, float16 };

/// The scales of a matrix: one number per block of rows x columns, row-major. The last blocks of
/// a matrix may be smaller.
struct Scales {
  const void* data = nullptr;  ///< [blocks of rows, blocks of columns]
  ScaleFormat format = ScaleFormat::float32;
  Index block_rows = 1;
  Index block_cols = 1;
  Index stride = 0;  ///< scales from one row of blocks to the next

  explicit operator bool() const noexcept { return data != nullptr; }
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
  template <StorageElement T>
  explicit WeightView(const std::vector<T>& vector)
      : WeightView(vector.data(), 1, static_cast<Index>(vector.size())) {}
  explicit WeightView(RowMajorMatrix&&) = delete;
  template <StorageElement T>
  explicit WeightView(std::vector<T>&&) = delete;

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

  /// Bytes of the view's elements, without scales.
  Index bytes() const noexcept { return rows * cols * info_of(format).bits / 8; }

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
    switch (scales.format) {
      case ScaleFormat::float32:
        return static_cast<const float*>(scales.data)[i];
      case ScaleFormat::bfloat16:
        return static_cast<float>(static_cast<const bfloat16*>(scales.data)[i]);
      case ScaleFormat::float16:
        return static_cast<float>(static_cast<const float16*>(scales.data)[i]);
    }
    __builtin_unreachable();
  }
};

namespace detail {

template <StorageElement T>
void widen_elements(const WeightView& block, MatrixView<float> out) noexcept {
  const MatrixView<const T> from = block.as<T>();
  for (Index r = 0; r < from.rows; ++r)
    for (Index c = 0; c < from.cols; ++c) out(r, c) = static_cast<float>(from(r, c));
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
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
    kExtraWeightFormat,
#endif
};
inline constexpr std::size_t kWeightFormatCount = std::size(kWeightFormats);
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
static_assert(static_cast<std::size_t>(WeightFormat::extra) + 1 == kWeightFormatCount);
#else
static_assert(static_cast<std::size_t>(WeightFormat::float16) + 1 == kWeightFormatCount);
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
  require(bool(weight.scales) == info.scaled, "tensor ", name, " of format ", info.name,
          info.scaled ? " needs scales" : " has scales, which this format does not use");
  if (!info.scaled) return;
  const Scales& scales = weight.scales;
  require(
      scales.block_rows > 0 && scales.block_cols > 0 &&
          scales.stride >= (weight.first_col + cols + scales.block_cols - 1) / scales.block_cols,
      "tensor ", name, " has scales for blocks of ", scales.block_rows, " x ", scales.block_cols,
      " with a stride of ", scales.stride, ", which do not cover ", cols, " columns");
}

/// A weight vector [1, n] of any format in float32.
inline std::vector<float> to_float_vector(const WeightView& weight) {
  std::vector<float> values(static_cast<std::size_t>(weight.cols));
  info_of(weight.format).widen(weight, {values.data(), 1, weight.cols});
  return values;
}

}  // namespace mla

#endif  // MLA_CORE_WEIGHT_VIEW_HPP_
