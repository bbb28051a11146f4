#ifndef MLA_ATTENTION_LATENT_CACHE_HPP_
#define MLA_ATTENTION_LATENT_CACHE_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "mla/attention/cache_runs.hpp"
#include "mla/attention/cache_segments.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/attention/sliding_window.hpp"
#include "mla/attention/token_positions.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/rope.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// A second row per token of a cache: the keys that sparse attention selects by. Width 0: none.
struct IndexKeyFormat {
  Index width = 0;  ///< numbers of a key
  CacheFormat format = CacheFormat::float32;
};

/// The index keys of a layer's cache where nobody chooses another format: as its rows, and fp8, as
/// they were published, beside rows of 8 and 4 bits.
inline IndexKeyFormat index_keys_of(const AttentionConfig& config, CacheFormat rows) noexcept {
  const Index width = config.indexer.key_width();
  switch (rows) {
    case CacheFormat::float32:
    case CacheFormat::bfloat16:
    case CacheFormat::float16:
#if defined(MLA_EXTRA_CACHE_FORMAT)
    case CacheFormat::extra:
#endif
      return {width, rows};
    case CacheFormat::int8:
    case CacheFormat::fp8:
    case CacheFormat::int4:
      break;
  }
  return {width, CacheFormat::fp8};
}

/// The cache of one sequence and one layer: a row [latent | rotary keys] for each token, of
/// kv_lora_rank + rope_key_width numbers in a format that is chosen at run time, in pages of 64
/// tokens; and perhaps an index key for each, which is appended, truncated and saved with it. The
/// latent is cached after kv_a_layernorm, rotary keys after rotation.
///
/// A cache can be forked: both share pages, and who writes to a shared one copies it first. Rows
/// can be evicted, and a part of the rows can be shifted to other positions, which touches no row:
/// its segment (cache_segments.hpp) gets an offset, by which attention turns its queries. Nothing
/// is ever evicted or shifted unless the caller says so.
class LatentCache {
 public:
  /// With index keys where the layer has an indexer; `index_keys` chooses another format for them.
  /// Throws std::invalid_argument where `config` or a format does not fit.
  [[gnu::cold]] explicit LatentCache(const AttentionConfig& config,
                                     CacheFormat format = CacheFormat::float32,
                                     const IndexKeyFormat& index_keys = {})
      : rotary_(validated(config).rotary()),
        rows_(row_layout(format, config.kv_lora_rank, config.rope_key_width()),
              PagedRows::Positions::with) {
    const IndexKeyFormat keys = index_keys.width != 0 ? index_keys : index_keys_of(config, format);
    if (keys.width != 0) index_keys_.emplace(row_layout(keys.format, keys.width, 0));
  }

  /// Tokens cached.
  Index size() const noexcept { return segments_.rows(); }
  /// Position of the next token where the caller gives none: one after the last.
  Index next_position() const noexcept { return size() == 0 ? 0 : position(size() - 1) + 1; }
  /// Position of cached token i, with the offset of its segment.
  Index position(Index i) const noexcept {
    const CacheSegment& segment = segments_[segments_.find(i)];
    return rows_.position(segment.slot + i - segment.first) + segment.offset;
  }
  /// [size()] position of each cached token, rising.
  std::vector<Index> positions() const {
    std::vector<Index> positions(static_cast<std::size_t>(size()));
    for (Index i = 0; i < size(); ++i) positions[static_cast<std::size_t>(i)] = position(i);
    return positions;
  }
  /// Tokens at positions below `position`.
  Index rows_before(Index position) const noexcept {
    Index first = 0, end = size();
    while (first < end) {
      const Index middle = first + (end - first) / 2;
      if (this->position(middle) < position)
        first = middle + 1;
      else
        end = middle;
    }
    return first;
  }

  std::span<const CacheSegment> segments() const noexcept { return segments_.all(); }
  /// That of the last segment, where rows are appended: the keys of a token at position p are to
  /// be rotated for p - offset().
  Index offset() const noexcept { return segments_.last().offset; }
  /// Whether row i is the i-th from the first page on, at the position that it was rotated for.
  bool is_whole() const noexcept { return segments_.size() == 1 && segments_.last().is_plain(); }

  CacheFormat format() const noexcept { return layout().format; }
  const RowLayout& layout() const noexcept { return rows_.layout(); }
  Index kv_lora_rank() const noexcept { return layout().latent_width; }
  Index rope_key_width() const noexcept { return layout().rope_width; }
  /// How the rotary keys were, or will be, rotated.
  const RotarySettings& rotary() const noexcept { return rotary_; }
  /// Whether rows of a layer of this configuration are what the cache holds.
  bool fits(const AttentionConfig& config) const {
    return kv_lora_rank() == config.kv_lora_rank && rope_key_width() == config.rope_key_width() &&
           rotary_.rotates_as(config.rotary());
  }

  /// Row i [latent | rotary keys], as bytes of layout().
  const std::byte* row(Index i) const noexcept { return rows_.row(segments_.slot(i)); }
  /// All rows where they lie, see CacheSegment::slot; row i is number i in a cache that is_whole().
  const PagedRows& rows() const noexcept { return rows_; }
  /// One row per token, of the same tokens; nullptr where the cache has none.
  const PagedRows* index_keys() const noexcept { return index_keys_ ? &*index_keys_ : nullptr; }

  /// Makes room for `tokens` tokens in all, so that appending up to there allocates nothing.
  void reserve(Index tokens) {
    const Index gaps = segments_.slots() - size();  // slots that hold no row
    rows_.reserve(tokens + gaps);
    if (index_keys_) index_keys_->reserve(tokens + gaps);
  }

  /// Appends rows [tokens, layout().width()] of float32, and index keys [tokens, their width] where
  /// the cache has them, encoded in its formats. Positions must rise; the keys of one at position p
  /// are rotated for p - offset(), and finite ones must be below the format's rope_limit. Throws
  /// std::invalid_argument, or std::bad_alloc, with the cache unchanged.
  void append(MatrixView<const float> rows, std::span<const Index> positions,
              const simd::Kernels& kernels = simd::kernels(),
              MatrixView<const float> index_keys = {}) {
    check_rows("cache rows", rows.rows, rows.cols, layout().width(), positions);
    check_index_keys(index_keys.data != nullptr, positions);
    if (index_keys_ && index_keys.data)
      check_rows("index keys", index_keys.rows, index_keys.cols, index_keys_->layout().width(),
                 positions);
    check_rope_keys(rows);
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
    segments_.truncate(tokens);
    resize_lists();
  }

  /// Forgets everything and keeps the memory.
  void clear() noexcept {
    segments_.clear();
    resize_lists();
  }

  /// A cache of the first `tokens` tokens, which goes on as if it had been computed on its own, bit
  /// for bit. Copies no row: both share the pages until one of them writes to the last one. Threads
  /// may fork the same cache. Throws std::invalid_argument if there are fewer tokens.
  [[gnu::cold]] LatentCache fork(Index tokens) const {
    require(tokens >= 0 && tokens <= size(), "cannot fork a cache of ", size(), " tokens at ",
            tokens);
    CacheSegments segments = segments_;
    segments.truncate(tokens);
    LatentCache cache(*this, rows_.fork(segments.slots()));
    if (index_keys_) cache.index_keys_ = index_keys_->fork(segments.slots());
    cache.segments_ = segments;
    return cache;
  }

  /// A cache like this one whose rows and index keys are in these pages of others, shared. There
  /// must be as many pages as the segments lie in. Throws std::invalid_argument otherwise.
  LatentCache of_pages(std::span<const SharedPage> rows, std::span<const SharedPage> index_keys,
                       const CacheSegments& segments) const {
    const Index pages = (segments.slots() + PagedRows::kPageRows - 1) / PagedRows::kPageRows;
    require(std::ssize(rows) == pages && std::ssize(index_keys) == (index_keys_ ? pages : 0),
            "segments in ", pages, " pages, got ", rows.size(), " of rows and ", index_keys.size(),
            " of index keys");
    LatentCache cache(*this, rows_.alike());
    for (const SharedPage& page : rows) cache.rows_.append_page(page);
    if (index_keys_) cache.index_keys_ = index_keys_->alike();
    for (const SharedPage& page : index_keys) cache.index_keys_->append_page(page);
    cache.segments_ = segments;
    cache.resize_lists();
    return cache;
  }

  /// Forgets the tokens `rows`, which must rise. The others keep their positions. Rows behind a gap
  /// are copied only where the cache would have more segments than CacheSegments::kMost. Throws
  /// std::invalid_argument for a row that is not there or comes twice, with the cache unchanged.
  [[gnu::cold]] void evict(std::span<const Index> rows) {
    Index last = -1;
    for (const Index row : rows) {
      require(row >= 0 && row < size(), "cannot evict row ", row, " of a cache of ", size(),
              " tokens");
      require(row > last, "rows to evict must rise: row ", row, " comes after ", last);
      last = row;
    }
    if (rows.empty()) return;
    if (last - rows.front() + 1 == std::ssize(rows)) return evict(rows.front(), std::ssize(rows));
    keep(detail::runs_without(segments_, rows));
  }

  /// Forgets tokens [first, + count). From the front of a segment it allocates nothing, and memory
  /// that becomes free takes the rows that are appended next.
  [[gnu::cold]] void evict(Index first, Index count) {
    require(first >= 0 && count >= 0 && count <= size() - first, "cannot evict rows ", first,
            " to ", first + count, " of a cache of ", size(), " tokens");
    if (count == 0) return;
    if (drops_in_place(first, count)) return drop_front(segments_.find(first), count);
    keep(detail::runs_without(segments_, first, first + count));
  }

  /// Whether evict(first, count) and close_up() of these rows move no row and no page and need no
  /// memory: they are the front of a segment, or none.
  bool drops_in_place(Index first, Index count) const noexcept {
    if (first == size()) return true;
    const CacheSegment& segment = segments_[segments_.find(first)];
    return segment.first == first && count < segment.rows;
  }

  /// Moves the positions of the tokens from row `first` on by `delta`, exactly, however often, and
  /// without touching a row. Throws std::invalid_argument, with the cache unchanged, where
  /// positions would be negative, not rise any more or be above kMaxPosition, where there would be
  /// more segments than CacheSegments::kMost (see rebase()), and for a cache with index keys, whose
  /// rotation it does not know.
  [[gnu::cold]] void shift(Index first, Index delta) {
    require(first >= 0 && first < size(), "cannot shift a cache of ", size(), " tokens from row ",
            first, " on");
    require(delta >= -kMaxPosition && delta <= kMaxPosition, "cannot shift by ", delta,
            " positions");
    require(!index_keys_, "cannot shift a cache with index keys: they are rotated, too");
    const Index to = position(first) + delta, last = position(size() - 1) + delta;
    require(to >= 0, "a shift by ", delta, " would move row ", first, " from position ",
            position(first), " to ", to);
    require(first == 0 || to > position(first - 1), "a shift by ", delta, " would move row ", first,
            " to position ", to, ", but row ", first - 1, " is at ",
            first == 0 ? 0 : position(first - 1));
    require(last <= kMaxPosition, "a shift by ", delta, " would move the last row to position ",
            last, ", beyond 2^40");
    if (delta == 0) return;
    std::size_t i = segments_.find(first);
    if (segments_[i].first < first) {
      split(first);
      ++i;
    }
    for (; i < segments_.size(); ++i) segments_[i].offset += delta;
  }

  /// Forgets the tokens that a window hides from the token that came after the first `tokens`, and
  /// moves those behind them as many positions closer: what follows is as if they had never been
  /// there. Nothing that comes after a truncate(tokens) sees them, so drafts can still be rejected.
  /// Throws std::invalid_argument as evict() and shift(), with the cache unchanged.
  void slide(const SlidingWindow& window, Index tokens) {
    const Index rows = window.slides(size(), tokens);
    if (rows > 0) close_up(window.keep, rows, rows);
  }

  /// Whether slide() needs no memory and cannot fail: after the first time.
  bool slides_in_place(const SlidingWindow& window, Index tokens) const noexcept {
    const Index rows = window.slides(size(), tokens);
    return rows == 0 || drops_in_place(window.keep, rows);
  }

  /// Forgets tokens [first, + count) and moves those behind them by -`closer` positions, which must
  /// be no more than that gap allows. Throws as evict() and shift(), with the cache unchanged.
  [[gnu::cold]] void close_up(Index first, Index count, Index closer) {
    require(!index_keys_, "cannot shift a cache with index keys: they are rotated, too");
    require(first >= 0 && count >= 0 && count <= size() - first, "cannot evict rows ", first,
            " to ", first + count, " of a cache of ", size(), " tokens");
    if (first + count == size()) return evict(first, count);
    if (count == 0) return shift(first, -closer);
    const Index to = position(first + count) - closer;
    require(to > (first == 0 ? -1 : position(first - 1)), "closing up by ", closer,
            " would move row ", first + count, " to position ", to);
    const CacheSegment& segment = segments_[segments_.find(first)];
    require(segment.first == first || segment.end() <= first + count ||
                segments_.size() < CacheSegments::kMost,
            "a cache cannot have more than ", CacheSegments::kMost, " segments: rebase() it");
    evict(first, count);  // a segment begins there now
    for (std::size_t i = segments_.find(first); i < segments_.size(); ++i)
      segments_[i].offset -= closer;
  }

  /// Makes one segment of all, without an offset: rotary keys of segments with one are rotated by
  /// it and rounded to the format once more, other segments copied. Shifting again and again costs
  /// nothing, rebasing again and again a rounding each time. Throws std::invalid_argument where
  /// `config` is of another layer, and for a cache with index keys.
  void rebase(const AttentionConfig& config, const simd::Kernels& kernels = simd::kernels()) {
    require(fits(config), "the cache was made for another configuration");
    if (is_whole()) return;
    require(!index_keys_, "cannot rebase a cache with index keys: they are rotated, too");
    const bool keep_first = segments_[0].is_plain();
    LatentCache whole = fork(keep_first ? segments_[0].rows : 0);
    whole.reserve(size());
    const RotaryEmbedding rotary(config);
    for (const CacheSegment& segment : segments_.all().subspan(keep_first ? 1 : 0))
      whole.append_turned(*this, segment, config, rotary, kernels);
    *this = std::move(whole);
  }

  /// Gives back memory that holds no token.
  void shrink_to_fit() {
    rows_.shrink_to_fit();
    if (index_keys_) index_keys_->shrink_to_fit();
  }

  /// Bytes of one token's row and index key.
  std::size_t bytes_per_token() const noexcept {
    const Index index_key = index_keys_ ? index_keys_->layout().bytes : 0;
    return static_cast<std::size_t>(layout().bytes + index_key);
  }
  /// Bytes of the cached rows and index keys. See bytes_used(caches) for caches that share some.
  std::size_t bytes_used() const noexcept {
    return static_cast<std::size_t>(size()) * bytes_per_token();
  }
  /// Bytes of all pages, also of shared ones, with the positions in them (8 per token).
  std::size_t bytes_allocated() const noexcept {
    return rows_.bytes_allocated() + (index_keys_ ? index_keys_->bytes_allocated() : 0);
  }

 private:
  // With the rows of another cache like `like`, and nothing else of it.
  LatentCache(const LatentCache& like, PagedRows rows)
      : rotary_(like.rotary_), rows_(std::move(rows)) {}

  void check_rows(const char* what, Index rows, Index cols, Index width,
                  std::span<const Index> positions) const {
    require(cols == width, what, " have ", width, " elements, got ", cols);
    require(rows == std::ssize(positions), "got ", rows, " rows but ", positions.size(),
            " positions");
  }

  void check_rope_keys(MatrixView<const float> rows) const {
    const CacheFormatInfo& format = info_of(layout().format);
    if (std::isinf(format.rope_limit)) return;
    const auto rope = rows.col_range(kv_lora_rank(), rope_key_width());
    for (Index t = 0; t < rope.rows; ++t)
      for (Index i = 0; i < rope.cols; ++i)
        require(std::abs(rope(t, i)) < format.rope_limit || !std::isfinite(rope(t, i)),
                "rotary key ", i, " of cache row ", t, " is ", rope(t, i), ", a cache of format ",
                format.name, " holds those below ", format.rope_limit);
  }

  // No tokens have no keys.
  void check_index_keys(bool given, std::span<const Index> positions) const {
    require(bool(index_keys_) == given || positions.empty(), "this cache has ",
            index_keys_ ? "" : "no ", "index keys, got ", given ? "some" : "none");
  }

  // Makes rows for the positions, yet to be filled; returns the first of them, among all slots.
  Index add_rows(std::span<const Index> positions) {
    check_positions(positions);
    const Index count = std::ssize(positions);
    reserve(size() + count);
    CacheSegment& last = segments_.last();
    const Index old = last.slot + last.rows;
    last.rows += count;
    resize_lists();
    for (Index t = 0; t < count; ++t)
      rows_.set_position(old + t, positions[static_cast<std::size_t>(t)] - last.offset);
    return old;
  }

  void check_positions(std::span<const Index> positions) const {
    Index before = next_position() - 1;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      require_next_position(positions[i], before, static_cast<Index>(i));
      before = positions[i];
    }
    require(before - offset() <= kMaxPosition, "position ", before,
            " of a cache that is shifted by ", offset(),
            " is to be rotated for a position beyond 2^40: rebase() it");
  }

  void resize_lists() noexcept {
    rows_.resize(segments_.slots());
    if (index_keys_) index_keys_->resize(segments_.slots());
  }

  // Keeps the rows of `runs`, which are parts of the segments, and no others.
  [[gnu::cold]] void keep(std::span<const CacheSegment> runs) {
    if (runs.empty()) return clear();
    const detail::Regrouping groups(segments_, runs);
    PagedRows rows = groups.gathered(rows_);
    if (index_keys_) index_keys_ = groups.gathered(*index_keys_);
    rows_ = std::move(rows);
    segments_ = groups.segments();
  }

  // Forgets the first `count` rows of segment i, which has more.
  void drop_front(std::size_t i, Index count) noexcept {
    CacheSegment& segment = segments_[i];
    const Index page = segment.slot / PagedRows::kPageRows;
    segment.rows -= count;
    segment.slot += count;
    segment.place += count;
    const Index pages = segment.slot / PagedRows::kPageRows - page;
    for (std::size_t later = i; later < segments_.size(); ++later) {
      if (later > i) segments_[later].first -= count;
      segments_[later].slot -= pages * PagedRows::kPageRows;
    }
    rows_.erase_pages(page, pages);
    if (index_keys_) index_keys_->erase_pages(page, pages);
  }

  // Makes row `row`, in the middle of a segment, the first of one.
  void split(Index row) {
    require(segments_.size() < CacheSegments::kMost, "a cache cannot have more than ",
            CacheSegments::kMost, " segments: rebase() it");
    keep(detail::runs_without(segments_, row, row));
  }

  // Appends the rows of a segment of another cache, rotary keys rotated by its offset.
  void append_turned(const LatentCache& from, const CacheSegment& segment,
                     const AttentionConfig& config, const RotaryEmbedding& rotary,
                     const simd::Kernels& kernels) {
    const std::size_t pairs = rotary.inv_freq().size();
    std::vector<float> cos(pairs), sin(pairs), row(static_cast<std::size_t>(layout().width()));
    std::vector<std::byte> bytes(static_cast<std::size_t>(layout().bytes));
    rotary.turn(segment.offset, rotary_.rope_scaling.long_context, cos, sin);
    for (Index i = segment.first; i < segment.end(); ++i) {
      std::copy_n(from.row(i), layout().bytes, bytes.begin());
      if (segment.offset != 0) {
        info_of(format()).widen(layout(), from.row(i), row.data());  // not rounded
        for (Index k = 0; k < config.rope_keys(); ++k)
          kernels.rotate(row.data() + kv_lora_rank() + k * config.qk_rope_head_dim, cos.data(),
                         sin.data(), config.qk_rope_head_dim, config.rope_interleave);
        encode_rope_keys(row.data(), bytes, kernels);
      }
      const Index position = from.position(i);
      append_stored({bytes.data(), 1, layout().bytes}, {&position, 1});
    }
  }

  // The rotary keys of a row of float32 -> their bytes, the last ones; those of the latent stay.
  void encode_rope_keys(const float* row, std::span<std::byte> bytes,
                        const simd::Kernels& kernels) const {
    std::vector<std::byte> encoded(bytes.size());
    kernels.of(format()).encode(layout(), row, encoded.data());
    const auto first = info_of(format()).row_bytes(kv_lora_rank(), 0);
    std::copy(encoded.begin() + first, encoded.end(), bytes.begin() + first);
  }

  static void encode(MatrixView<const float> from, Index first, PagedRows& to,
                     const simd::Kernels& kernels) {
    for (Index t = 0; t < from.rows; ++t)
      kernels.of(to.layout().format).encode(to.layout(), from.row(t), to.row(first + t));
  }
  static void copy(MatrixView<const std::byte> from, Index first, PagedRows& to) {
    for (Index t = 0; t < from.rows; ++t) std::copy_n(from.row(t), from.cols, to.row(first + t));
  }

  RotarySettings rotary_;
  PagedRows rows_;
  std::optional<PagedRows> index_keys_;
  CacheSegments segments_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_LATENT_CACHE_HPP_
