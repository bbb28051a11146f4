#ifndef MLA_BASELINE_KEY_VALUE_CACHE_HPP_
#define MLA_BASELINE_KEY_VALUE_CACHE_HPP_

#include <algorithm>
#include <span>
#include <vector>

#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/baseline/grouped_query_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// The cache of one sequence and one layer of MHA, GQA or MQA: a key [head_dim] and a value
/// [v_head_dim] of every K/V head for each token, as elements of T (float, bfloat16 or float16), in
/// pages of 64 tokens. Keys are cached after rotation.
///
/// A page is [kv heads, 64 tokens, key | value]: what attention reads together, one head of many
/// tokens, lies together. With all heads of a token side by side instead, decoding DeepSeek-V3's
/// heads as MHA takes 15 % longer at 16,384 tokens.
template <StorageElement T>
class KeyValueCache {
 public:
  using Element = T;

  /// Throws std::invalid_argument where `config` does not fit.
  explicit KeyValueCache(const GroupedQueryConfig& config)
      : rows_((config.validate(), config.cache_row_width())),
        heads_(config.num_key_value_heads),
        head_dim_(config.head_dim),
        value_dim_(config.value_dim()) {}

  /// Tokens cached.
  Index size() const noexcept { return rows_.size(); }
  /// Position of the next token where the caller gives none: one after the last.
  Index next_position() const noexcept { return positions_.empty() ? 0 : positions_.back() + 1; }
  /// [size()] position of each cached token, rising.
  std::span<const Index> positions() const noexcept { return positions_; }

  Index num_key_value_heads() const noexcept { return heads_; }
  Index head_dim() const noexcept { return head_dim_; }
  Index value_dim() const noexcept { return value_dim_; }
  bool fits(const GroupedQueryConfig& config) const noexcept {
    return heads_ == config.num_key_value_heads && head_dim_ == config.head_dim &&
           value_dim_ == config.value_dim();
  }

  /// [head_dim] key and [v_head_dim] value of K/V head h of token i.
  const T* key(Index i, Index h) const noexcept {
    return rows_.row(i - i % kPageTokens) + offset_in_page(i, h);
  }
  const T* value(Index i, Index h) const noexcept { return key(i, h) + head_dim_; }

  /// The first `count` keys and values of K/V head h, as kernels take them.
  simd::KeyValueRows<T> head(Index h, Index count) const noexcept {
    const Index stride = head_dim_ + value_dim_;
    const Index first = h * kPageTokens * stride;
    return {.pages = rows_.pages(),
            .page_rows = kPageTokens,
            .row_stride = stride,
            .count = count,
            .key_offset = first,
            .key_width = head_dim_,
            .tail_offset = first,
            .tail_width = 0,
            .value_offset = first + head_dim_,
            .value_width = value_dim_};
  }

  /// Makes room for `tokens` tokens in all, so that appending up to there allocates nothing.
  void reserve(Index tokens) {
    rows_.reserve(tokens);
    if (static_cast<std::size_t>(tokens) > positions_.capacity())
      positions_.reserve(
          std::max(static_cast<std::size_t>(rows_.capacity()), 2 * positions_.capacity()));
  }

  /// Appends keys [tokens, kv heads * head_dim] and values [tokens, kv heads * v_head_dim] of
  /// float32, rounded to T. Positions must rise. Throws std::invalid_argument, or std::bad_alloc,
  /// with the cache as it was.
  void append(MatrixView<const float> keys, MatrixView<const float> values,
              std::span<const Index> positions, const simd::Kernels& kernels = simd::kernels()) {
    require(keys.cols == heads_ * head_dim_, "keys must have ", heads_, " * ", head_dim_,
            " columns (K/V heads * head_dim), got ", keys.cols);
    require(values.cols == heads_ * value_dim_, "values must have ", heads_, " * ", value_dim_,
            " columns (K/V heads * v_head_dim), got ", values.cols);
    require(keys.rows == static_cast<Index>(positions.size()) && values.rows == keys.rows, "got ",
            keys.rows, " keys and ", values.rows, " values but ", positions.size(), " positions");
    Index last = next_position() - 1;
    for (Index position : positions) {
      require(position > last, "positions must rise: got ", position, " after ", last);
      require(position <= kMaxPosition, "positions must be at most ", kMaxPosition, ", got ",
              position);
      last = position;
    }
    const Index old = size();
    reserve(old + keys.rows);
    rows_.resize(old + keys.rows);
    for (Index t = 0; t < keys.rows; ++t)
      for (Index h = 0; h < heads_; ++h) {
        const Index i = old + t;
        T* key = rows_.row(i - i % kPageTokens) + offset_in_page(i, h);
        kernels.of<T>().from_float(keys.row(t) + h * head_dim_, head_dim_, key);
        kernels.of<T>().from_float(values.row(t) + h * value_dim_, value_dim_, key + head_dim_);
      }
    positions_.insert(positions_.end(), positions.begin(), positions.end());
  }

  /// Forgets all but the first `tokens` tokens, exactly: what follows is as if the others had never
  /// been there. Keeps the memory. Throws std::invalid_argument if there are fewer.
  void truncate(Index tokens) {
    require(tokens >= 0 && tokens <= size(), "cannot truncate a cache of ", size(), " tokens to ",
            tokens);
    rows_.resize(tokens);
    positions_.resize(static_cast<std::size_t>(tokens));
  }

  /// Forgets everything and keeps the memory.
  void clear() noexcept {
    rows_.resize(0);
    positions_.clear();
  }

  /// Gives back memory that holds no token.
  void shrink_to_fit() {
    rows_.shrink_to_fit();
    positions_.shrink_to_fit();
  }

  std::size_t bytes_per_token() const noexcept {
    return static_cast<std::size_t>(rows_.row_width()) * sizeof(T);
  }
  /// Bytes of the cached keys and values.
  std::size_t bytes_used() const noexcept { return rows_.bytes_used(); }
  /// Bytes of all pages, and of the positions kept beside them (8 a token).
  std::size_t bytes_allocated() const noexcept {
    return rows_.bytes_allocated() + positions_.capacity() * sizeof(Index);
  }

 private:
  static constexpr Index kPageTokens = PagedRows<T>::kPageRows;

  // Elements from the start of its page to the key of K/V head h of token i.
  Index offset_in_page(Index i, Index h) const noexcept {
    return (h * kPageTokens + i % kPageTokens) * (head_dim_ + value_dim_);
  }

  PagedRows<T> rows_;  // owns the pages and counts the tokens; a page is ordered by head
  Index heads_;
  Index head_dim_;
  Index value_dim_;
  std::vector<Index> positions_;
};

}  // namespace mla

#endif  // MLA_BASELINE_KEY_VALUE_CACHE_HPP_
