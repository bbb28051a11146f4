#ifndef MLA_ATTENTION_TURNED_QUERIES_HPP_
#define MLA_ATTENTION_TURNED_QUERIES_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/ops/rope.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Queries for segments of a cache that are shifted against the last one, which queries are rotated
/// for: a score depends on the distance of query and key only, so the query is rotated further, by
/// the same distance for all keys of a segment, and no key is touched. In float32, like the first
/// rotation: the error of a score grows by as much again, and not with the number of shifts.
class TurnedQueries {
 public:
  /// `rope_first`: where in a query the rotary part begins. `rotary` may be nullptr where nothing
  /// is shifted. Takes memory for a table.
  TurnedQueries(const AttentionConfig& config, const RotaryEmbedding* rotary, Index rope_first,
                Workspace& workspace)
      : rotary_(rotary),
        rope_first_(rope_first),
        rope_(config.qk_rope_head_dim),
        interleaved_(config.rope_interleave),
        cos_(workspace.take<float>(rope_ / 2)),
        sin_(workspace.take<float>(rope_ / 2)) {}

  /// Whether any token of the batch sees keys that its query must be turned for.
  static bool needed(std::span<const CachedTokens> batch) noexcept {
    return std::ranges::any_of(batch, [](const CachedTokens& sequence) {
      return std::ssize(sequence.cache->segments()) > 1 || sequence.window;
    });
  }
  /// Throws std::invalid_argument if they are needed and there is no rotary embedding.
  [[gnu::cold]] static void require_rotary(std::span<const CachedTokens> batch,
                                           const RotaryEmbedding* rotary) {
    require(rotary != nullptr || !needed(batch),
            "attention over a cache with segments or through a window needs the rotary embedding");
  }

  /// Turns by `positions`, for keys of `cache`, from here on.
  void set(const LatentCache& cache, Index positions) noexcept {
    const auto pairs = static_cast<std::size_t>(rope_ / 2);
    rotary_->turn(positions, cache.rotary().rope_scaling.long_context, {cos_, pairs},
                  {sin_, pairs});
  }
  /// query -> out [width]
  void turn(const float* query, Index width, float* out,
            const simd::Kernels& kernels) const noexcept {
    std::copy_n(query, width, out);
    kernels.rotate(out + rope_first_, cos_, sin_, rope_, interleaved_);
  }

 private:
  const RotaryEmbedding* rotary_;
  Index rope_first_, rope_;
  bool interleaved_;
  float *cos_, *sin_;  // [rope / 2]
};

}  // namespace mla

#endif  // MLA_ATTENTION_TURNED_QUERIES_HPP_
