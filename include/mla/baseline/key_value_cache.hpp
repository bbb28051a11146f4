#ifndef MLA_BASELINE_KEY_VALUE_CACHE_HPP_
#define MLA_BASELINE_KEY_VALUE_CACHE_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/attention/paged_rows.hpp"
#include "mla/attention/token_positions.hpp"
#include "mla/baseline/grouped_query_config.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// The cache of one sequence and one layer of MHA, GQA or MQA: a key [head_dim] and a value
/// [v_head_dim] of every K/V head for each token, in a format that is chosen at run time, in pages
/// of 64 tokens. Keys are cached after rotation.
///
/// A page is [kv heads, 64 tokens, key | value]: what attention reads together, one head of many
/// tokens, lies together. With all heads of a token side by side instead, decoding DeepSeek-V3's
/// heads as MHA takes 15 % longer at 16,384 tokens.
class GroupedKVCache {
 public:
  /// Throws std::invalid_argument where `config` or the format does not fit.
  explicit GroupedKVCache(const GroupedQueryConfig& config,
                          CacheFormat format = CacheFormat::float32)
      : rotary_(validated(config).rotary()),
        head_row_(row_layout(format, config.head_dim + config.value_dim(), 0)),
        rows_({format, config.cache_row_width(), 0, config.num_key_value_heads * head_row_.bytes}),
        heads_(config.num_key_value_heads),
        head_dim_(config.head_dim),
        one_row_(static_cast<std::size_t>(head_row_.width())) {}

  /// Tokens cached.
  Index size() const noexcept { return rows_.size(); }
  /// Position of the next token where the caller gives none: one after the last.
  Index next_position() const noexcept { return positions_.last() + 1; }
  /// [size()] position of each cached token, rising.
  std::span<const Index> positions() const noexcept { return positions_.values(); }

  CacheFormat format() const noexcept { return head_row_.format; }
  Index num_key_value_heads() const noexcept { return heads_; }
  Index head_dim() const noexcept { return head_dim_; }
  Index value_dim() const noexcept { return head_row_.width() - head_dim_; }
  /// How the keys were, or will be, rotated.
  const RotarySettings& rotary() const noexcept { return rotary_; }

  /// How [key | value] of one head of one token lies in bytes.
  const RowLayout& head_row() const noexcept { return head_row_; }
  /// The bytes of K/V head h of token i.
  const std::byte* row(Index i, Index h) const noexcept {
    return rows_.row(i - i % kPageTokens) + offset_in_page(i, h);
  }

  /// The first `count` keys and values of K/V head h, as kernels take them.
  simd::KeyValueRows head(Index h, Index count) const noexcept {
    return {.pages = rows_.pages(),
            .page_rows = kPageTokens,
            .page_offset = offset_in_page(0, h),
            .layout = head_row_,
            .count = count,
            .key_offset = 0,
            .key_width = head_dim_,
            .tail_offset = 0,
            .tail_width = 0,
            .value_offset = head_dim_,
            .value_width = value_dim()};
  }

  /// Makes room for `tokens` tokens in all, so that appending up to there allocates nothing.
  void reserve(Index tokens) {
    rows_.reserve(tokens);
    positions_.reserve(tokens, rows_.capacity());
  }

  /// Appends keys [tokens, kv heads * head_dim] and values [tokens, kv heads * v_head_dim] of
  /// float32, encoded in the cache's format. Positions must rise. Throws std::invalid_argument, or
  /// std::bad_alloc, with the cache unchanged.
  void append(MatrixView<const float> keys, MatrixView<const float> values,
              std::span<const Index> positions, const simd::Kernels& kernels = simd::kernels()) {
    require(keys.cols == heads_ * head_dim_, "keys must have ", heads_, " * ", head_dim_,
            " columns (K/V heads * head_dim), got ", keys.cols);
    require(values.cols == heads_ * value_dim(), "values must have ", heads_, " * ", value_dim(),
            " columns (K/V heads * v_head_dim), got ", values.cols);
    require(keys.rows == std::ssize(positions) && values.rows == keys.rows, "got ", keys.rows,
            " keys and ", values.rows, " values but ", positions.size(), " positions");
    positions_.check(positions);
    const Index old = size();
    reserve(old + keys.rows);
    rows_.resize(old + keys.rows);
    for (Index t = 0; t < keys.rows; ++t)
      for (Index h = 0; h < heads_; ++h) {
        const Index i = old + t;
        std::copy_n(keys.row(t) + h * head_dim_, head_dim_, one_row_.begin());
        std::copy_n(values.row(t) + h * value_dim(), value_dim(), one_row_.begin() + head_dim_);
        kernels.of(format()).encode(head_row_, one_row_.data(),
                                    rows_.row(i - i % kPageTokens) + offset_in_page(i, h));
      }
    positions_.append(positions);
  }

  /// Forgets all but the first `tokens` tokens, exactly: what follows is as if the others had never
  /// been there. Keeps the memory. Throws std::invalid_argument if there are fewer.
  void truncate(Index tokens) {
    require(tokens >= 0 && tokens <= size(), "cannot truncate a cache of ", size(), " tokens to ",
            tokens);
    rows_.resize(tokens);
    positions_.truncate(tokens);
  }

  /// Forgets everything and keeps the memory.
  void clear() noexcept {
    rows_.resize(0);
    positions_.truncate(0);
  }

  /// Gives back memory that holds no token.
  void shrink_to_fit() {
    rows_.shrink_to_fit();
    positions_.shrink_to_fit();
  }

  std::size_t bytes_per_token() const noexcept {
    return static_cast<std::size_t>(rows_.layout().bytes);
  }
  /// Bytes of the cached keys and values.
  std::size_t bytes_used() const noexcept { return rows_.bytes_used(); }
  /// Bytes of all pages, and of the positions kept beside them (8 per token).
  std::size_t bytes_allocated() const noexcept {
    return rows_.bytes_allocated() + positions_.bytes_allocated();
  }

 private:
  static constexpr Index kPageTokens = PagedRows::kPageRows;

  // Bytes from the start of its page to K/V head h of token i.
  Index offset_in_page(Index i, Index h) const noexcept {
    return (h * kPageTokens + i % kPageTokens) * head_row_.bytes;
  }

  RotarySettings rotary_;
  RowLayout head_row_;
  PagedRows rows_;  // owns the pages and counts the tokens; a page is ordered by head
  Index heads_;
  Index head_dim_;
  std::vector<float> one_row_;  // [key | value] of one head, on its way
  TokenPositions positions_;
};

/// A GroupedKVCache whose rows are elements of T: float, bfloat16 or float16.
template <StorageElement T>
class KeyValueCache : public GroupedKVCache {
 public:
  using Element = T;

  /// Throws std::invalid_argument where `config` does not fit.
  explicit KeyValueCache(const GroupedQueryConfig& config)
      : GroupedKVCache(config, kCacheFormatOf<T>) {}

  /// [head_dim] key and [v_head_dim] value of K/V head h of token i.
  const T* key(Index i, Index h) const noexcept { return reinterpret_cast<const T*>(row(i, h)); }
  const T* value(Index i, Index h) const noexcept { return key(i, h) + head_dim(); }
};

}  // namespace mla

#endif  // MLA_BASELINE_KEY_VALUE_CACHE_HPP_
