#ifndef MLA_IO_FP8_HPP_
#define MLA_IO_FP8_HPP_

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"

// The 8-bit floating-point formats of published checkpoints (OCP specifications OFP8 and MX), and
// DeepSeek-V3's block-scaled weights (technical report, section 3.3.2).

namespace mla {

/// F8_E4M3 (E4M3FN): 4 exponent bits with bias 7, 3 mantissa bits, subnormals down to 2^-9, largest
/// value 448, no infinities; 0x7f and 0xff are NaN. Exact.
constexpr float decode_e4m3(std::uint8_t code) noexcept {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  if (magnitude < 0x08u)  // zero and subnormals: magnitude * 2^-9
    return (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) * 0x1p-9f;
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));  // bias 7 to 127
}

/// F8_E8M0 (ue8m0): 2^(code - 127); 0xff is NaN. Exact.
constexpr float decode_e8m0(std::uint8_t code) noexcept {
  if (code == 0xffu) return std::numeric_limits<float>::quiet_NaN();
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<std::uint32_t>(code) << 23);
}

/// Rows and columns that share one scale; a matrix's last blocks may be smaller.
using BlockSize = std::array<Index, 2>;

inline constexpr BlockSize kDefaultWeightBlockSize = {128, 128};

/// Number of blocks that cover a matrix [rows, cols], in each direction.
constexpr BlockSize blocks_of(Index rows, Index cols, BlockSize block) noexcept {
  return {rows / block[0] + (rows % block[0] != 0), cols / block[1] + (cols % block[1] != 0)};
}

namespace detail {

template <StorageElement T>
void dequantize_fp8_to(MatrixView<const std::uint8_t> weight, MatrixView<const float> scale_inv,
                       BlockSize block, MatrixView<T> out) {
  require(block[0] > 0 && block[1] > 0, "block size must be positive, got ", block[0], " x ",
          block[1]);
  const auto [block_rows, block_cols] = blocks_of(weight.rows, weight.cols, block);
  require(scale_inv.rows == block_rows && scale_inv.cols == block_cols, "scale_inv must be [",
          block_rows, ", ", block_cols, "], got [", scale_inv.rows, ", ", scale_inv.cols, "]");
  require(out.rows == weight.rows && out.cols == weight.cols, "out must be [", weight.rows, ", ",
          weight.cols, "], got [", out.rows, ", ", out.cols, "]");

  static constexpr auto kDecoded = [] {
    std::array<float, 256> table{};
    for (unsigned code = 0; code < 256; ++code)
      table[code] = decode_e4m3(static_cast<std::uint8_t>(code));
    return table;
  }();
  for (Index r = 0; r < weight.rows; ++r) {
    const std::uint8_t* from = weight.row(r);
    T* to = out.row(r);
    for (Index b = 0; b < block_cols; ++b) {
      const float scale = scale_inv(r / block[0], b);
      const Index end = std::min((b + 1) * block[1], weight.cols);
      for (Index c = b * block[1]; c < end; ++c) to[c] = static_cast<T>(kDecoded[from[c]] * scale);
    }
  }
}

}  // namespace detail

/// Block-scaled F8_E4M3 to bfloat16 or float: value * scale of its block.
///   weight     [rows, cols]  F8_E4M3 codes
///   scale_inv  [ceil(rows / block[0]), ceil(cols / block[1])]
///   out        [rows, cols]
/// The product is rounded to float32 and then to the type of `out`, to nearest even: for bfloat16
/// the arithmetic of `weight_dequant` in DeepSeek's inference/kernel.py. Throws
/// std::invalid_argument when the shapes do not fit.
inline void dequantize_fp8(MatrixView<const std::uint8_t> weight, MatrixView<const float> scale_inv,
                           BlockSize block, MatrixView<bfloat16> out) {
  detail::dequantize_fp8_to(weight, scale_inv, block, out);
}
inline void dequantize_fp8(MatrixView<const std::uint8_t> weight, MatrixView<const float> scale_inv,
                           BlockSize block, MatrixView<float> out) {
  detail::dequantize_fp8_to(weight, scale_inv, block, out);
}

}  // namespace mla

#endif  // MLA_IO_FP8_HPP_
