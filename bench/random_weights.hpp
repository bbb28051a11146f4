#ifndef MLA_BENCH_RANDOM_WEIGHTS_HPP_
#define MLA_BENCH_RANDOM_WEIGHTS_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <span>
#include <vector>

#include "kernel_benchmark.hpp"

// Weights of any format as they are published, of random codes: what products with them cost does
// not depend on what they are.

namespace mla::bench {

/// Bytes that repeat after a while; not all of them are codes that are numbers.
inline void fill_random(std::span<std::byte> bytes) {
  static const std::vector<float> values = random_values<float>(65521);
  constexpr std::size_t kPeriod = 65521;
  for (std::size_t i = 0; i < std::min(kPeriod, bytes.size()); ++i)
    bytes[i] = static_cast<std::byte>(static_cast<int>(values[i] * 127.0f) & 0xff);
  for (std::size_t i = kPeriod; i < bytes.size(); i += kPeriod)
    std::memcpy(bytes.data() + i, bytes.data(), std::min(kPeriod, bytes.size() - i));
}

/// Numbers of type T, or codes that none of is NaN.
inline void fill_weights(WeightFormat format, std::span<std::byte> bytes, float scale) {
  const auto numbers = [&](auto element) {
    using T = decltype(element);
    const auto values = random_values<T>(static_cast<Index>(bytes.size() / sizeof(T)), scale);
    std::memcpy(bytes.data(), values.data(), values.size() * sizeof(T));
  };
  if (format == WeightFormat::float32) return numbers(float());
  if (format == WeightFormat::bfloat16) return numbers(bfloat16());
  if (format == WeightFormat::float16) return numbers(float16());
  fill_random(bytes);
  if (format == WeightFormat::fp8_e4m3)
    for (std::byte& code : bytes)
      if ((code & std::byte{0x7f}) == std::byte{0x7f}) code ^= std::byte{1};
}

/// How the weights of a format are scaled: blocks of DeepSeek-V3's fp8, a scale per row of int8,
/// per 32 inputs of int4 (Kimi K2) and fp4 (MX). No format for those that have none.
struct PublishedScales {
  ScaleFormat format;
  Index block_rows, block_cols;
};
inline PublishedScales published_scales(WeightFormat format, Index cols) {
  if (format == WeightFormat::fp8_e4m3) return {ScaleFormat::float32, 128, 128};
  if (format == WeightFormat::int8) return {ScaleFormat::float32, 1, cols};
  if (format == WeightFormat::int4) return {ScaleFormat::bfloat16, 1, 32};
  return {ScaleFormat::fp8_e8m0, 1, 32};
}

/// The bytes of `count` scales, all alike, that make weights of about `scale` of random codes.
inline std::vector<std::byte> equal_scales(WeightFormat format, ScaleFormat stored, Index count,
                                           float scale) {
  const float largest = format == WeightFormat::fp8_e4m3 ? 448.0f
                        : format == WeightFormat::int8   ? 128.0f
                        : format == WeightFormat::int4   ? 8.0f
                                                         : 6.0f;
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * bytes_of(stored)));
  const auto fill = [&](auto value) {
    for (std::size_t i = 0; i < bytes.size(); i += sizeof(value))
      std::memcpy(bytes.data() + i, &value, sizeof(value));
  };
  if (stored == ScaleFormat::float32)
    fill(scale / largest);
  else if (stored == ScaleFormat::bfloat16)
    fill(bfloat16(scale / largest));
  else
    fill(std::uint8_t{121});  // 2^-6
  return bytes;
}

/// Matrices of any format, and their memory.
class RandomWeights {
 public:
  WeightView matrix(WeightFormat format, Index rows, Index cols, float scale = 0.05f) {
    auto& codes =
        memory_.emplace_back(static_cast<std::size_t>(rows * cols * info_of(format).bits / 8));
    fill_weights(format, codes, scale);
    if (!info_of(format).scaled) return {codes.data(), format, rows, cols};
    const auto [stored, block_rows, block_cols] = published_scales(format, cols);
    const Index stride = (cols + block_cols - 1) / block_cols;
    const Index count = (rows + block_rows - 1) / block_rows * stride;
    auto& scales = memory_.emplace_back(equal_scales(format, stored, count, scale));
    return {codes.data(), format, rows, cols,
            Scales{.data = scales.data(),
                   .format = stored,
                   .block_rows = block_rows,
                   .block_cols = block_cols,
                   .stride = stride}};
  }

  /// What a product reads of a matrix.
  static double bytes_of(const WeightView& weight) {
    return static_cast<double>(weight.bytes() + weight.scale_bytes());
  }

 private:
  std::list<std::vector<std::byte>> memory_;
};

}  // namespace mla::bench

#endif  // MLA_BENCH_RANDOM_WEIGHTS_HPP_
