#ifndef MLA_ATTENTION_LATENT_CACHE_HPP_
#define MLA_ATTENTION_LATENT_CACHE_HPP_

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

#include "mla/attention/paged_rows.hpp"
#include "mla/attention/token_positions.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// A second row per token of a cache: the keys that sparse attention selects by. Width 0: none.
struct IndexKeyFormat {
  Index width = 0;  ///< numbers of a key
  CacheFormat format = CacheFormat::float32;
};

/// The cache of one sequence and one layer: a row [latent | rotary keys] for each token, of
/// kv_lora_rank + rope_key_width numbers in a format that is chosen at run time, in pages of 64
/// tokens; and perhaps an index key for each, which is appended, truncated and saved with it. The
/// latent is cached after kv_a_layernorm, rotary keys after rotation.
class LatentCache {
 public:
  /// Throws std::invalid_argument where `config` or a format does not fit.
  explicit LatentCache(const AttentionConfig& config, CacheFormat format = CacheFormat::float32,
                       const IndexKeyFormat& index_keys = {})
      : rows_(
            (config.validate(), row_layout(format, config.kv_lora_rank, config.rope_key_width()))) {
    if (index_keys.width != 0)
      index_keys_.emplace(row_layout(index_keys.format, index_keys.width, 0));
  }

  /// Tokens cached.
  Index size() const noexcept { return rows_.size(); }
  /// Position of the next token where the caller gives none: one after the last.
  Index next_position() const noexcept { return positions_.last() + 1; }
  /// [size()] position of each cached token, rising.
  std::span<const Index> positions() const noexcept { return positions_.values(); }

  CacheFormat format() const noexcept { return layout().format; }
  const RowLayout& layout() const noexcept { return rows_.layout(); }
  Index kv_lora_rank() const noexcept { return layout().latent_width; }
  Index rope_key_width() const noexcept { return layout().rope_width; }
  bool fits(const AttentionConfig& config) const noexcept {
    return kv_lora_rank() == config.kv_lora_rank && rope_key_width() == config.rope_key_width();
  }

  /// Rows [latent | rotary keys], as bytes of layout().
  const PagedRows& rows() const noexcept { return rows_; }
  /// One row per token, of the same tokens; nullptr where the cache has none.
  const PagedRows* index_keys() const noexcept { return index_keys_ ? &*index_keys_ : nullptr; }

  /// Makes room for `tokens` tokens in all, so that appending up to there allocates nothing.
  void reserve(Index tokens) {
    rows_.reserve(tokens);
    if (index_keys_) index_keys_->reserve(tokens);
    positions_.reserve(tokens, rows_.capacity());
  }

  /// Appends rows [tokens, layout().width()] of float32, and index keys [tokens, their width] where
  /// the cache has them, encoded in its formats. Positions must rise. Throws std::invalid_argument,
  /// or std::bad_alloc, with the cache unchanged.
  void append(MatrixView<const float> rows, std::span<const Index> positions,
              const simd::Kernels& kernels = simd::kernels(),
              MatrixView<const float> index_keys = {}) {
    check_rows("cache rows", rows.rows, rows.cols, layout().width(), positions);
    check_index_keys(index_keys.data != nullptr, positions);
    if (index_keys_ && index_keys.data)
      check_rows("index keys", index_keys.rows, index_keys.cols, index_keys_->layout().width(),
                 positions);
    const Index old = add_rows(positions);
    encode(rows, old, rows_, kernels);
    if (index_keys_) encode(index_keys, old, *index_keys_, kernels);
  }

  /// Appends rows [tokens, layout().bytes] byte by byte as rows() of another cache gives them, and
  /// index keys likewise. Errors as for append().
  void append_stored(MatrixView<const std::byte> rows, std::span<const Index> positions,
                     MatrixView<const std::byte> index_keys = {}) {
    check_rows("stored cache rows", rows.rows, rows.cols, layout().bytes, positions);
    check_index_keys(index_keys.data != nullptr, positions);
    if (index_keys_ && index_keys.data)
      check_rows("stored index keys", index_keys.rows, index_keys.cols, index_keys_->layout().bytes,
                 positions);
    const Index old = add_rows(positions);
    copy(rows, old, rows_);
    if (index_keys_) copy(index_keys, old, *index_keys_);
  }

  /// Forgets all but the first `tokens` tokens, exactly: what follows is as if the others had never
  /// been there. Keeps the memory. Throws std::invalid_argument if there are fewer.
  void truncate(Index tokens) {
    require(tokens >= 0 && tokens <= size(), "cannot truncate a cache of ", size(), " tokens to ",
            tokens);
    rows_.resize(tokens);
    if (index_keys_) index_keys_->resize(tokens);
    positions_.truncate(tokens);
  }

  /// Forgets everything and keeps the memory.
  void clear() noexcept {
    rows_.resize(0);
    if (index_keys_) index_keys_->resize(0);
    positions_.truncate(0);
  }

  /// Gives back memory that holds no token.
  void shrink_to_fit() {
    rows_.shrink_to_fit();
    if (index_keys_) index_keys_->shrink_to_fit();
    positions_.shrink_to_fit();
  }

  /// Bytes of one token's row and index key.
  std::size_t bytes_per_token() const noexcept {
    const Index index_key = index_keys_ ? index_keys_->layout().bytes : 0;
    return static_cast<std::size_t>(layout().bytes + index_key);
  }
  /// Bytes of the cached rows and index keys.
  std::size_t bytes_used() const noexcept {
    return rows_.bytes_used() + (index_keys_ ? index_keys_->bytes_used() : 0);
  }
  /// Bytes of all pages, and of the positions kept beside them (8 per token).
  std::size_t bytes_allocated() const noexcept {
    return rows_.bytes_allocated() + (index_keys_ ? index_keys_->bytes_allocated() : 0) +
           positions_.bytes_allocated();
  }

 private:
  void check_rows(const char* what, Index rows, Index cols, Index width,
                  std::span<const Index> positions) const {
    require(cols == width, what, " have ", width, " elements, got ", cols);
    require(rows == std::ssize(positions), "got ", rows, " rows but ", positions.size(),
            " positions");
  }

  // No tokens have no keys.
  void check_index_keys(bool given, std::span<const Index> positions) const {
    require(bool(index_keys_) == given || positions.empty(), "this cache has ",
            index_keys_ ? "" : "no ", "index keys, got ", given ? "some" : "none");
  }

  // Makes rows for the positions, yet to be filled; returns the first of them.
  Index add_rows(std::span<const Index> positions) {
    positions_.check(positions);
    const Index old = size(), all = old + std::ssize(positions);
    reserve(all);
    rows_.resize(all);
    if (index_keys_) index_keys_->resize(all);
    positions_.append(positions);
    return old;
  }

  static void encode(MatrixView<const float> from, Index first, PagedRows& to,
                     const simd::Kernels& kernels) {
    for (Index t = 0; t < from.rows; ++t)
      kernels.of(to.layout().format).encode(to.layout(), from.row(t), to.row(first + t));
  }
  static void copy(MatrixView<const std::byte> from, Index first, PagedRows& to) {
    for (Index t = 0; t < from.rows; ++t) std::copy_n(from.row(t), from.cols, to.row(first + t));
  }

  PagedRows rows_;
  std::optional<PagedRows> index_keys_;
  TokenPositions positions_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_LATENT_CACHE_HPP_
