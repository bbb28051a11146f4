#ifndef MLA_SUPPORT_DECODED_ROWS_HPP_
#define MLA_SUPPORT_DECODED_ROWS_HPP_

#include <cmath>
#include <cstddef>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/ops/rope.hpp"
#include "support/compare.hpp"

namespace mla::test {

/// Rows [tokens, cache row width] of a cache as they are decoded, in double, with the rotary keys
/// of shifted segments turned to the positions where they count as being.
inline DoubleMatrix decoded_rows(const AttentionConfig& config, const LatentCache& cache) {
  DoubleMatrix rows(cache.size(), config.cache_row_width());
  std::vector<float> row(static_cast<std::size_t>(rows.cols()));
  const RotaryEmbedding rotary(config);
  const Index half = std::ssize(rotary.inv_freq());
  const auto turn = [&](double* pairs, Index positions) {
    for (Index i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(positions) * rotary.inv_freq()[static_cast<std::size_t>(i)];
      double& a = pairs[config.rope_interleave ? 2 * i : i];
      double& b = pairs[config.rope_interleave ? 2 * i + 1 : i + half];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  };
  for (const CacheSegment& segment : cache.segments())
    for (Index i = segment.first; i < segment.end(); ++i) {
      info_of(cache.format()).widen(cache.layout(), cache.row(i), row.data());
      for (Index c = 0; c < rows.cols(); ++c)
        rows(i, c) = static_cast<double>(row[static_cast<std::size_t>(c)]);
      for (Index k = 0; k < config.rope_keys(); ++k)
        turn(rows.row(i).data() + config.kv_lora_rank + k * config.qk_rope_head_dim,
             segment.offset);
    }
  return rows;
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_DECODED_ROWS_HPP_
