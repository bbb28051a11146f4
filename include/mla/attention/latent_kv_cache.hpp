#ifndef MLA_ATTENTION_LATENT_KV_CACHE_HPP_
#define MLA_ATTENTION_LATENT_KV_CACHE_HPP_

#include <algorithm>
#include <span>
#include <vector>

#include "mla/attention/paged_rows.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Largest position id: the angle of a rotation, in double, is exact to 1e-3 radians there.
inline constexpr Index kMaxPosition = Index{1} << 40;

/// The cache of one sequence and one layer: a row [latent | rotary keys] for each token, of
/// kv_lora_rank + rope_key_width elements of T (float, bfloat16 or float16), in pages of 64 tokens.
/// The latent is cached after kv_a_layernorm, rotary keys after rotation.
template <StorageElement T>
class LatentKVCache {
 public:
  using Element = T;

  /// Throws std::invalid_argument where `config` does not fit.
  explicit LatentKVCache(const AttentionConfig& config)
      : rows_((config.validate(), config.cache_row_width())), kv_lora_rank_(config.kv_lora_rank) {}

  /// Tokens cached.
  Index size() const noexcept { return rows_.size(); }
  /// Position of the next token where the caller gives none: one after the last.
  Index next_position() const noexcept { return positions_.empty() ? 0 : positions_.back() + 1; }
  /// [size()] position of each cached token, rising.
  std::span<const Index> positions() const noexcept { return positions_; }

  Index kv_lora_rank() const noexcept { return kv_lora_rank_; }
  Index rope_key_width() const noexcept { return rows_.row_width() - kv_lora_rank_; }
  bool fits(const AttentionConfig& config) const noexcept {
    return kv_lora_rank_ == config.kv_lora_rank && rows_.row_width() == config.cache_row_width();
  }

  /// Row i: latent [kv_lora_rank], then rotary keys [rope_key_width].
  const T* row(Index i) const noexcept { return rows_.row(i); }
  const PagedRows<T>& rows() const noexcept { return rows_; }

  /// Makes room for `tokens` tokens in all, so that appending up to there allocates nothing.
  void reserve(Index tokens) {
    rows_.reserve(tokens);
    if (static_cast<std::size_t>(tokens) > positions_.capacity())
      positions_.reserve(
          std::max(static_cast<std::size_t>(rows_.capacity()), 2 * positions_.capacity()));
  }

  /// Appends rows [tokens, row width] of float32, rounded to T. Positions must rise. Throws
  /// std::invalid_argument, or std::bad_alloc, with the cache as it was.
  void append(MatrixView<const float> rows, std::span<const Index> positions,
              const simd::Kernels& kernels = simd::kernels()) {
    const Index old = add_rows(rows.rows, rows.cols, positions);
    for (Index t = 0; t < rows.rows; ++t)
      kernels.of<T>().from_float(rows.row(t), rows.cols, rows_.row(old + t));
  }

  /// Appends rows [tokens, row width] bit by bit as row() of another cache gives them. Errors as
  /// for append().
  void append_stored(MatrixView<const T> rows, std::span<const Index> positions) {
    const Index old = add_rows(rows.rows, rows.cols, positions);
    for (Index t = 0; t < rows.rows; ++t) std::copy_n(rows.row(t), rows.cols, rows_.row(old + t));
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
  /// Bytes of the cached rows.
  std::size_t bytes_used() const noexcept { return rows_.bytes_used(); }
  /// Bytes of all pages, and of the positions kept beside them (8 a token).
  std::size_t bytes_allocated() const noexcept {
    return rows_.bytes_allocated() + positions_.capacity() * sizeof(Index);
  }

 private:
  // Checks all, then makes rows for the positions, yet to be filled; returns the first of them.
  Index add_rows(Index rows, Index cols, std::span<const Index> positions) {
    require(cols == rows_.row_width(), "cache rows have ", rows_.row_width(), " elements, got ",
            cols);
    require(rows == std::ssize(positions), "got ", rows, " rows but ", positions.size(),
            " positions");
    Index last = next_position() - 1;
    for (Index position : positions) {
      require(position > last, "positions must rise: got ", position, " after ", last);
      require(position <= kMaxPosition, "positions must be at most ", kMaxPosition, ", got ",
              position);
      last = position;
    }
    const Index old = size();
    reserve(old + rows);
    rows_.resize(old + rows);
    positions_.insert(positions_.end(), positions.begin(), positions.end());
    return old;
  }

  PagedRows<T> rows_;
  Index kv_lora_rank_;
  std::vector<Index> positions_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_LATENT_KV_CACHE_HPP_
