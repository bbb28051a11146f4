#ifndef MLA_SUPPORT_QUANTISED_MATRIX_HPP_
#define MLA_SUPPORT_QUANTISED_MATRIX_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <ostream>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "support/random.hpp"

namespace mla::test {

/// How a matrix is quantised, as checkpoints are published.
struct Quantisation {
  WeightFormat format = WeightFormat::fp8_e4m3;
  ScaleFormat scales = ScaleFormat::float32;
  Index block_rows = 1;  ///< 0: all
  Index block_cols = 0;  ///< 0: all
  bool zero_points = false;
};

inline std::ostream& operator<<(std::ostream& out, const Quantisation& q) {
  return out << name_of(q.format) << " scales " << static_cast<int>(q.scales) << " of "
             << q.block_rows << " x " << q.block_cols << (q.zero_points ? " zero points" : "");
}

/// Every format with the blocks and scales that it is published with, and odd ones.
inline constexpr Quantisation kQuantisations[] = {
    {WeightFormat::fp8_e4m3, ScaleFormat::float32, 128, 128},
    {WeightFormat::fp8_e4m3, ScaleFormat::fp8_e8m0, 128, 128},
    {WeightFormat::fp8_e4m3, ScaleFormat::fp8_e8m0, 1, 32},
    {WeightFormat::fp8_e4m3, ScaleFormat::bfloat16, 1, 0},
    {WeightFormat::fp8_e4m3, ScaleFormat::float32, 0, 0},
    {WeightFormat::fp8_e4m3, ScaleFormat::float32, 3, 7},
    {WeightFormat::int8, ScaleFormat::float32, 1, 0},
    {WeightFormat::int8, ScaleFormat::bfloat16, 1, 128},
    {WeightFormat::int8, ScaleFormat::float32, 128, 128},
    {WeightFormat::int4, ScaleFormat::bfloat16, 1, 32},
    {WeightFormat::int4, ScaleFormat::float16, 1, 64},
    {WeightFormat::int4, ScaleFormat::float32, 1, 128},
    {WeightFormat::int4, ScaleFormat::bfloat16, 1, 0},
    {WeightFormat::int4, ScaleFormat::float16, 1, 32, true},
    {WeightFormat::int4, ScaleFormat::bfloat16, 1, 0, true},
    {WeightFormat::int4, ScaleFormat::float32, 1, 5},
    {WeightFormat::fp4_e2m1, ScaleFormat::fp8_e8m0, 1, 32},
    {WeightFormat::fp4_e2m1, ScaleFormat::fp8_e4m3, 1, 16},
};

/// A matrix of random codes and scales: weights of about `magnitude`. Codes, scales and zero points
/// have rows that lie apart, with NaN scales and other numbers between and behind them: who takes
/// the scale of another block gets NaN or another weight.
class QuantisedMatrix {
 public:
  QuantisedMatrix(const Quantisation& q, Index rows, Index cols, Random& random,
                  double magnitude = 1.0)
      : q_(q),
        rows_(rows),
        cols_(cols),
        block_rows_(q.block_rows == 0 ? std::max<Index>(rows, 1) : q.block_rows),
        block_cols_(q.block_cols == 0 ? std::max<Index>(cols, 1) : q.block_cols),
        stride_((cols + 7) / 8 * 8 + 8),
        blocks_((cols + block_cols_ - 1) / block_cols_),
        scale_stride_(blocks_ + 1) {
    const Index bits = info_of(q.format).bits;
    // A mapped file promises no alignment beyond that of the tensor's own elements.
    offset_ = q.format == WeightFormat::int4 ? 4 : 1;
    codes_.resize(static_cast<std::size_t>(offset_ + rows * stride_ * bits / 8));
    for (std::byte& byte : codes_) byte = static_cast<std::byte>(random.bits());
    if (q.format == WeightFormat::fp8_e4m3)
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < cols; ++c)
          if ((code_bits(r, c) & 0x7fu) == 0x7fu) set_code(r, c, std::byte{0x80});
    if (q.scales == ScaleFormat::fp8_e4m3) factor_ = 0.7f * static_cast<float>(typical(magnitude));
    const Index scale_rows = (rows + block_rows_ - 1) / block_rows_;
    scales_.resize(static_cast<std::size_t>((scale_rows * scale_stride_ + 1) * bytes_of(q.scales)));
    for (Index i = 0; i < scale_rows * scale_stride_ + 1; ++i)
      set_scale(i, i % scale_stride_ < blocks_ && i / scale_stride_ < scale_rows
                       ? typical(magnitude) * random.uniform(0.5, 1.5)
                       : std::numeric_limits<double>::quiet_NaN());
    if (!q.zero_points) return;
    zero_points_.resize(static_cast<std::size_t>((rows + 7) / 8 * scale_stride_));
    for (std::uint32_t& word : zero_points_) word = static_cast<std::uint32_t>(random.bits());
  }

  WeightView view() const {
    WeightView view(codes_.data() + offset_, q_.format, rows_, cols_,
                    Scales{.data = scales_.data(),
                           .format = q_.scales,
                           .block_rows = block_rows_,
                           .block_cols = block_cols_,
                           .stride = scale_stride_,
                           .factor = factor_,
                           .zero_points = q_.zero_points ? zero_points_.data() : nullptr});
    view.stride = stride_;
    return view;
  }

  /// What element [r, c] is, by the definition of its format: code times scale, rounded once.
  float at(Index r, Index c) const {
    const Index block = c / block_cols_;
    const float scale =
        static_cast<float>(scale_at(r / block_rows_ * scale_stride_ + block) * double{factor_});
    return static_cast<float>(code_at(r, c, block) * double{scale});
  }

  RowMajorMatrix decoded() const {
    RowMajorMatrix values(rows_, cols_);
    for (Index r = 0; r < rows_; ++r)
      for (Index c = 0; c < cols_; ++c) values(r, c) = at(r, c);
    return values;
  }

  /// Makes element [r, c] of a format with 8 bits this code.
  void set_code(Index r, Index c, std::byte code) {
    codes_[static_cast<std::size_t>(offset_ + r * stride_ + c)] = code;
  }
  /// Makes scale i, counted with the gaps, the nearest to this one that its format has.
  void set_scale(Index i, double scale) {
    const auto store = [&](auto element) {
      std::memcpy(scales_.data() + i * static_cast<Index>(sizeof(element)), &element,
                  sizeof(element));
    };
    const bool nan = std::isnan(scale);
    switch (q_.scales) {
      case ScaleFormat::float32:
        return store(static_cast<float>(scale));
      case ScaleFormat::bfloat16:
        return store(bfloat16(static_cast<float>(scale)));
      case ScaleFormat::float16:
        return store(float16(static_cast<float>(scale)));
      case ScaleFormat::fp8_e8m0:
        return store(static_cast<std::uint8_t>(nan ? 0xff : 127 + std::ilogb(scale)));
      case ScaleFormat::fp8_e4m3:  // 2^-2 to 2^2 times the factor, roughly
        return store(static_cast<std::uint8_t>(
            nan ? 0x7f : 0x28 + static_cast<int>(32.0 * scale / (2.0 * factor_)) % 32));
    }
  }

 private:
  // A scale that makes weights of about `magnitude` of it.
  double typical(double magnitude) const {
    switch (q_.format) {
      case WeightFormat::fp8_e4m3:
        return magnitude / 64.0;
      case WeightFormat::int8:
        return magnitude / 74.0;
      case WeightFormat::int4:
        return magnitude / 4.6;
      case WeightFormat::fp4_e2m1:
        return magnitude / 2.9;
      case WeightFormat::float32:
      case WeightFormat::bfloat16:
      case WeightFormat::float16:
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
      case WeightFormat::extra:
#endif
        break;
    }
    return magnitude;
  }

  unsigned code_bits(Index r, Index c) const {
    return std::to_integer<unsigned>(codes_[static_cast<std::size_t>(offset_ + r * stride_ + c)]);
  }

  double code_at(Index r, Index c, Index block) const {
    if (info_of(q_.format).bits == 8) {
      const int code = static_cast<int>(code_bits(r, c));
      if (q_.format == WeightFormat::int8) return code < 128 ? code : code - 256;
      const double sign = code < 128 ? 1.0 : -1.0;
      if (code % 128 == 127) return std::numeric_limits<double>::quiet_NaN();
      if (code % 128 < 8) return sign * std::ldexp(code % 8, -9);
      return sign * std::ldexp(1.0 + code % 8 / 8.0, code / 8 % 16 - 7);
    }
    const auto place = static_cast<std::size_t>(offset_ + (r * stride_ + c) / 2);
    const int pair = std::to_integer<int>(codes_[place]);
    const int code = c % 2 == 0 ? pair % 16 : pair / 16;
    if (q_.format == WeightFormat::int4) {
      if (!q_.zero_points) return code - 8;
      const auto word = zero_points_[static_cast<std::size_t>(r / 8 * scale_stride_ + block)];
      return code - static_cast<int>(word / (1u << (r % 8 * 4)) % 16u);
    }
    const double magnitudes[] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    return (code < 8 ? 1.0 : -1.0) * magnitudes[code % 8];
  }

  double scale_at(Index i) const {
    const auto load = [&](auto element) {
      std::memcpy(&element, scales_.data() + i * static_cast<Index>(sizeof(element)),
                  sizeof(element));
      return element;
    };
    switch (q_.scales) {
      case ScaleFormat::float32:
        return load(float{});
      case ScaleFormat::bfloat16:
        return static_cast<float>(load(bfloat16{}));
      case ScaleFormat::float16:
        return static_cast<float>(load(float16{}));
      case ScaleFormat::fp8_e8m0:
        return std::ldexp(1.0, load(std::uint8_t{}) - 127);
      case ScaleFormat::fp8_e4m3: {
        const int code = load(std::uint8_t{});
        return code < 8 ? std::ldexp(code, -9) : std::ldexp(1.0 + code % 8 / 8.0, code / 8 - 7);
      }
    }
    __builtin_unreachable();
  }

  Quantisation q_;
  Index rows_, cols_, block_rows_, block_cols_, stride_, blocks_, scale_stride_;
  Index offset_ = 0;
  float factor_ = 1.0f;
  std::vector<std::byte> codes_, scales_;
  std::vector<std::uint32_t> zero_points_;
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_QUANTISED_MATRIX_HPP_
