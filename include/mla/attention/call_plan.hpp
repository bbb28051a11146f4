#ifndef MLA_ATTENTION_CALL_PLAN_HPP_
#define MLA_ATTENTION_CALL_PLAN_HPP_

#include <algorithm>
#include <cstdint>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/ops/rope.hpp"

namespace mla {

/// One sequence of a batch: its cache, and how many of the call's tokens continue it.
struct Sequence {
  LatentCache* cache = nullptr;
  Index tokens = 0;
  AttentionForm mode = AttentionForm::automatic;  ///< automatic: what ForwardOptions say
  SlidingWindow window = {};                      ///< none: what ForwardOptions say
};

/// Options of a forward pass.
struct ForwardOptions {
  AttentionForm mode = AttentionForm::automatic;

  /// [tokens] position of each token, rising within a sequence; gaps are allowed. Empty: the
  /// positions that follow the last cached one.
  std::span<const Index> position_ids = {};

  /// [tokens] 1 for a token, 0 for padding, anywhere in a sequence. Padding takes up a default
  /// position but no cache row, is seen by no token, and its output is 0; at the end of a call it
  /// leaves no trace, and the next call continues after the last token. Empty: no padding.
  std::span<const std::uint8_t> attention_mask = {};

  /// Rows of its sequence's cache that each token sees (the lists of padding are not read). Empty:
  /// all rows up to its own. AttentionForm::decompressed refuses it, AttentionForm::automatic is
  /// absorbed with it.
  KeySelection selected = {};

  /// What each token sees, as if the tokens came one by one and what the window hides were evicted
  /// before each (LatentCache::slide). Not with `selected`.
  SlidingWindow window = {};
};

/// A checked call, planned once for all layers: what each real token is and whose, its position and
/// rotation, and which keys it sees. Lives in a workspace.
class CallPlan {
 public:
  /// What a sequence brings to the call.
  struct Share {
    Index first_token = 0;  ///< of the real tokens
    Index tokens = 0;
    Index past = 0;  ///< tokens in its caches before the call
    AttentionForm mode = AttentionForm::automatic;
    SlidingWindow window = {};
    Index offset = 0;  ///< LatentCache::offset() of its caches
  };

  /// `batch` has the caches of one layer; those of other layers have as many tokens. Makes room in
  /// them. Throws std::invalid_argument for whatever does not fit, std::bad_alloc if the caches
  /// cannot grow; changes nothing that can be seen.
  CallPlan(const AttentionConfig& config, const RotaryEmbedding& rotary, Index tokens,
           std::span<const Sequence> batch, const ForwardOptions& options, Workspace& workspace)
      : padded_tokens_(tokens),
        source_rows_(workspace.take<Index>(tokens)),
        positions_(workspace.take<Index>(tokens)),
        shares_(workspace.take<Share>(std::ssize(batch))),
        sequences_(batch.size()) {
    check_sizes(config, batch, options);
    if (options.selected) selected_ = workspace.take<std::span<const Index>>(tokens);
    Index first = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const Index before = tokens_;
      add_tokens(batch[s], s, first, options);
      first += batch[s].tokens;
      shares_[s] = {before,
                    tokens_ - before,
                    batch[s].cache->size(),
                    batch[s].mode == AttentionForm::automatic ? options.mode : batch[s].mode,
                    batch[s].window ? batch[s].window : options.window,
                    batch[s].cache->offset()};
    }
    const Index pairs = config.qk_rope_head_dim / 2;
    tables_ = {workspace.take_matrix<float>(tokens_, pairs),
               workspace.take_matrix<float>(tokens_, pairs)};
    const std::span<const Index> rotations = take_rotations(workspace);
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const Index begin = shares_[s].first_token, count = shares_[s].tokens;
      rotary.tables(
          rotations.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
          batch[s].cache->rotary().rope_scaling.long_context, tables_.cos.row_range(begin, count),
          tables_.sin.row_range(begin, count));
      batch[s].cache->reserve(shares_[s].past + count);
    }
    if (config.query_temperature_beta != 0.0) {
      float* const scale = workspace.take<float>(tokens_);
      for (const Share& share : shares())
        for (Index i = 0; i < share.tokens; ++i) {
          const Index t = share.first_token + i;
          // Where the token is once what its window hides is gone.
          const Index position = positions_[t] - share.window.hidden(share.past + i + 1);
          scale[t] = static_cast<float>(config.query_temperature(position));
        }
      tables_.query_scale = scale;
    }
  }

  /// Tokens that are not padding.
  Index tokens() const noexcept { return tokens_; }
  bool has_padding() const noexcept { return tokens_ < padded_tokens_; }
  std::span<const Share> shares() const noexcept { return {shares_, sequences_}; }
  std::span<const Index> positions() const noexcept {
    return {positions_, static_cast<std::size_t>(tokens_)};
  }
  /// cos and sin of the positions less the offsets of the caches, and the factors on the queries.
  const RotaryTables& rotary() const noexcept { return tables_; }

  /// The tokens of sequence s once they are the last ones of `cache`.
  CachedTokens cached(std::size_t s, const LatentCache& cache) const noexcept {
    const Share& share = shares_[s];
    CachedTokens tokens = CachedTokens::ending_in(cache, share.first_token, share.tokens);
    if (selected_) tokens.selected = selected_ + share.first_token;
    tokens.window = share.window;
    return tokens;
  }

  /// Appends rows [tokens(), cache row width], and index keys [tokens(), their width] where the
  /// layer has them, to `caches`, one per sequence, of the same layer.
  void append(MatrixView<const float> rows, std::span<LatentCache* const> caches,
              const simd::Kernels& kernels, MatrixView<const float> index_keys = {}) const {
    for (std::size_t s = 0; s < sequences_; ++s) {
      const Share& share = shares_[s];
      require(caches[s]->offset() == share.offset, "the cache of sequence ", s,
              " of this layer is shifted by ", caches[s]->offset(), ", that of the first one by ",
              share.offset);
      caches[s]->append(
          rows.row_range(share.first_token, share.tokens),
          positions().subspan(static_cast<std::size_t>(share.first_token),
                              static_cast<std::size_t>(share.tokens)),
          kernels,
          index_keys.data ? index_keys.row_range(share.first_token, share.tokens) : index_keys);
    }
  }

  /// from [all tokens, n] -> to [tokens(), n]
  void gather(MatrixView<const float> from, MatrixView<float> to) const noexcept {
    for (Index t = 0; t < tokens_; ++t)
      std::copy_n(from.row(source_rows_[t]), from.cols, to.row(t));
  }
  /// from [tokens(), n] -> to [all tokens, n], zeros for padding
  void scatter(MatrixView<const float> from, MatrixView<float> to) const noexcept {
    for (Index row = 0, t = 0; row < padded_tokens_; ++row) {
      if (t < tokens_ && source_rows_[t] == row)
        std::copy_n(from.row(t++), from.cols, to.row(row));
      else
        std::fill_n(to.row(row), to.cols, 0.0f);
    }
  }

 private:
  [[gnu::cold]] void check_sizes(const AttentionConfig& config, std::span<const Sequence> batch,
                                 const ForwardOptions& options) const {
    Index total = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const LatentCache* cache = batch[s].cache;
      require(cache != nullptr, "sequence ", s, " has no cache");
      require(batch[s].tokens >= 0 && batch[s].tokens <= PagedRows::kMaxRows, "sequence ", s,
              " has ", batch[s].tokens, " tokens");
      require_cache(config, *cache, " of sequence ", s);
      check_mode(batch[s].mode, options);
      check_window(batch[s].window, options);
      const bool indexed = cache->index_keys() || config.indexer;
      require(!indexed || (!batch[s].window && !options.window), "sequence ", s,
              " has index keys, which no window slides over");
      for (std::size_t other = 0; other < s; ++other)
        require(batch[other].cache != cache, "sequences ", other, " and ", s,
                " have the same cache");
      total += batch[s].tokens;
    }
    require(total == padded_tokens_, "the sequences of the batch have ", total,
            " tokens together, x has ", padded_tokens_, " rows");
    check_mode(options.mode, options);
    check_window(options.window, options);
    const auto one_each = [&](const char* name, std::size_t size) {
      require(size == 0 || size == static_cast<std::size_t>(padded_tokens_), name, " must have ",
              padded_tokens_, " elements, one per token, got ", size);
    };
    one_each("position_ids", options.position_ids.size());
    one_each("attention_mask", options.attention_mask.size());
    if (options.selected) check_selection(options.selected);
    require(!options.selected || !config.indexer,
            "a layer with an indexer selects keys itself, it takes no selection");
  }

  static void check_mode(AttentionForm mode, const ForwardOptions& options) {
    require(mode == AttentionForm::automatic || mode == AttentionForm::absorbed ||
                mode == AttentionForm::decompressed,
            "mode ", static_cast<int>(mode), " does not exist");
    require(!options.selected || mode != AttentionForm::decompressed,
            "mode decompressed does not take selected keys: each token would need keys and values "
            "of its own; absorbed does");
  }

  static void check_window(const SlidingWindow& window, const ForwardOptions& options) {
    require_window(window, PagedRows::kMaxRows);
    require(!window || !options.selected, "a window and selected keys exclude each other");
  }

  // The positions that the tokens' keys and queries are rotated for.
  std::span<const Index> take_rotations(Workspace& workspace) const {
    Index* const rotations = workspace.take<Index>(tokens_);
    for (const Share& share : shares())
      for (Index t = share.first_token; t < share.first_token + share.tokens; ++t)
        rotations[t] = positions_[t] - share.offset;
    return {rotations, static_cast<std::size_t>(tokens_)};
  }

  // That lists can be taken; what they hold is checked token by token.
  void check_selection(const KeySelection& selected) const {
    require(std::ssize(selected.first) == padded_tokens_ + 1, "selected.first must have ",
            padded_tokens_ + 1, " elements, one per token and the end, got ",
            selected.first.size());
    Index last = 0;
    for (const Index first : selected.first) {
      require(first >= last && first <= std::ssize(selected.rows),
              "selected.first must rise from 0 to at most the ", selected.rows.size(),
              " rows, got ", first, " after ", last);
      last = first;
    }
  }

  // The real ones of a sequence's tokens, which start at row `first` of the call.
  void add_tokens(const Sequence& sequence, std::size_t s, Index first,
                  const ForwardOptions& options) {
    const Index start = sequence.cache->next_position(), past = sequence.cache->size();
    const Index before = tokens_;
    Index last = start - 1;
    for (Index i = 0; i < sequence.tokens; ++i) {
      const auto row = static_cast<std::size_t>(first + i);
      if (!options.attention_mask.empty()) {
        require(options.attention_mask[row] <= 1, "attention_mask must be 0 or 1, got ",
                int{options.attention_mask[row]}, " for token ", i, " of sequence ", s);
        if (options.attention_mask[row] == 0) continue;
      }
      const Index position = options.position_ids.empty() ? start + i : options.position_ids[row];
      require_next_position(position, last, i, s);
      last = position;
      if (selected_) {
        selected_[tokens_] = options.selected.of(first + i);
        require_selection(selected_[tokens_], past + tokens_ - before + 1, first + i);
      }
      source_rows_[tokens_] = first + i;
      positions_[tokens_] = position;
      ++tokens_;
    }
  }

  Index padded_tokens_;
  Index tokens_ = 0;
  Index* source_rows_;  // [tokens_] row of the call
  Index* positions_;    // [tokens_]
  Share* shares_;       // [sequences_] without padding
  std::size_t sequences_;
  std::span<const Index>* selected_ = nullptr;  // [tokens_], where there is a selection
  RotaryTables tables_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_CALL_PLAN_HPP_
