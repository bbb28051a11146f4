#ifndef MLA_ATTENTION_FORWARD_PLAN_HPP_
#define MLA_ATTENTION_FORWARD_PLAN_HPP_

#include <algorithm>
#include <cstdint>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"

namespace mla {

/// One sequence of a batch: its cache, and how many of the call's tokens continue it.
template <StorageElement T>
struct Sequence {
  LatentKVCache<T>* cache = nullptr;
  Index tokens = 0;
};

/// What a caller may say about a forward pass.
struct ForwardOptions {
  Mode mode = Mode::automatic;

  /// [tokens] position of each token, rising within a sequence; gaps are allowed. Empty: the
  /// positions that follow the last cached one.
  std::span<const Index> position_ids = {};

  /// [tokens] 1 for a token, 0 for padding, anywhere in a sequence. Padding takes up a default
  /// position but no cache row, is seen by no token, and its output is 0; at the end of a call it
  /// leaves no trace, and the next call continues after the last token. Empty: no padding.
  std::span<const std::uint8_t> attention_mask = {};
};

/// A checked call: what each real token is, and whose. Lives in a workspace.
template <StorageElement T>
class ForwardPlan {
 public:
  /// Throws std::invalid_argument for whatever does not fit, std::bad_alloc if the caches cannot
  /// grow; changes nothing that can be seen.
  ForwardPlan(const AttentionConfig& config, Index tokens, std::span<const Sequence<T>> batch,
              const ForwardOptions& options, const AttentionSpeed& speed, Workspace& workspace)
      : batch_(batch),
        padded_tokens_(tokens),
        source_rows_(workspace.take<Index>(tokens)),
        positions_(workspace.take<Index>(tokens)),
        sequences_(workspace.take<CachedTokens<T>>(static_cast<Index>(batch.size()))),
        modes_(workspace.take<Mode>(static_cast<Index>(batch.size()))) {
    check_sizes(config, options);
    Index first = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const Sequence<T>& sequence = batch[s];
      const Index before = tokens_;
      add_tokens(sequence, s, first, options);
      first += sequence.tokens;
      const Index added = tokens_ - before, past = sequence.cache->size();
      sequences_[s] = {sequence.cache, before, added};
      modes_[s] =
          options.mode == Mode::automatic ? choose_mode(config, past, added, speed) : options.mode;
    }
    for (std::size_t s = 0; s < batch.size(); ++s)
      batch[s].cache->reserve(batch[s].cache->size() + sequences_[s].tokens);
  }

  /// Tokens that are not padding.
  Index tokens() const noexcept { return tokens_; }
  std::span<const Index> positions() const noexcept {
    return {positions_, static_cast<std::size_t>(tokens_)};
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

  /// Takes what append() did back, unless told to keep it.
  class Appended {
   public:
    explicit Appended(std::span<const CachedTokens<T>> sequences,
                      std::span<const Sequence<T>> batch)
        : sequences_(sequences), batch_(batch) {}
    Appended(const Appended&) = delete;
    Appended& operator=(const Appended&) = delete;
    ~Appended() {
      if (kept_) return;
      for (std::size_t s = 0; s < batch_.size(); ++s)
        batch_[s].cache->truncate(sequences_[s].past());
    }
    void keep() noexcept { kept_ = true; }

   private:
    std::span<const CachedTokens<T>> sequences_;
    std::span<const Sequence<T>> batch_;
    bool kept_ = false;
  };

  /// Appends rows [tokens(), cache row width] to the caches, which have the room for them.
  [[nodiscard]] Appended append(MatrixView<const float> rows, const simd::Kernels& kernels) const {
    for (std::size_t s = 0; s < batch_.size(); ++s)
      batch_[s].cache->append(
          rows.row_range(sequences_[s].first_token, sequences_[s].tokens),
          positions().subspan(static_cast<std::size_t>(sequences_[s].first_token),
                              static_cast<std::size_t>(sequences_[s].tokens)),
          kernels);
    return Appended({sequences_, batch_.size()}, batch_);
  }

  /// Calls run(mode, first token, tokens, sequences) for neighbouring sequences of the same mode.
  /// The sequences count their tokens from the run's first; to be called once, after append().
  template <class Run>
  void for_each_run(const Run& run) {
    for (std::size_t s = 0, end; s < batch_.size(); s = end) {
      const Index first = sequences_[s].first_token;
      Index count = 0;
      for (end = s; end < batch_.size() && modes_[end] == modes_[s]; ++end) {
        sequences_[end].first_token -= first;
        count += sequences_[end].tokens;
      }
      if (count > 0)
        run(modes_[s], first, count, std::span<const CachedTokens<T>>(sequences_ + s, end - s));
    }
  }

 private:
  void check_sizes(const AttentionConfig& config, const ForwardOptions& options) const {
    Index total = 0;
    for (std::size_t s = 0; s < batch_.size(); ++s) {
      const auto* cache = batch_[s].cache;
      require(cache != nullptr, "sequence ", s, " has no cache");
      require(batch_[s].tokens >= 0 && batch_[s].tokens <= PagedRows<T>::kMaxRows, "sequence ", s,
              " has ", batch_[s].tokens, " tokens");
      require(cache->fits(config), "the cache of sequence ", s, " has rows of ",
              cache->kv_lora_rank(), " + ", cache->rope_key_width(),
              " elements (latent + rotary keys), this layer needs ", config.kv_lora_rank, " + ",
              config.rope_key_width());
      for (std::size_t other = 0; other < s; ++other)
        require(batch_[other].cache != cache, "sequences ", other, " and ", s,
                " have the same cache");
      total += batch_[s].tokens;
    }
    require(total == padded_tokens_, "the sequences of the batch have ", total,
            " tokens together, x has ", padded_tokens_, " rows");
    const auto one_each = [&](const char* name, std::size_t size) {
      require(size == 0 || size == static_cast<std::size_t>(padded_tokens_), name, " must have ",
              padded_tokens_, " elements, one a token, got ", size);
    };
    one_each("position_ids", options.position_ids.size());
    one_each("attention_mask", options.attention_mask.size());
  }

  // The real ones of a sequence's tokens, which start at row `first` of the call.
  void add_tokens(const Sequence<T>& sequence, std::size_t s, Index first,
                  const ForwardOptions& options) {
    const Index start = sequence.cache->next_position();
    Index last = start - 1;
    for (Index i = 0; i < sequence.tokens; ++i) {
      const auto row = static_cast<std::size_t>(first + i);
      if (!options.attention_mask.empty()) {
        require(options.attention_mask[row] <= 1, "attention_mask must be 0 or 1, got ",
                int{options.attention_mask[row]}, " for token ", i, " of sequence ", s);
        if (options.attention_mask[row] == 0) continue;
      }
      const Index position = options.position_ids.empty() ? start + i : options.position_ids[row];
      require(position <= kMaxPosition, "position_ids must be at most ", kMaxPosition, ", token ",
              i, " of sequence ", s, " has ", position);
      require(position > last, "position_ids must rise: token ", i, " of sequence ", s,
              " has position ", position, " after ", last);
      last = position;
      source_rows_[tokens_] = first + i;
      positions_[tokens_] = position;
      ++tokens_;
    }
  }

  std::span<const Sequence<T>> batch_;
  Index padded_tokens_;
  Index tokens_ = 0;
  Index* source_rows_;          // [tokens_] row of the call
  Index* positions_;            // [tokens_]
  CachedTokens<T>* sequences_;  // [batch] without padding
  Mode* modes_;                 // [batch]
};

}  // namespace mla

#endif  // MLA_ATTENTION_FORWARD_PLAN_HPP_
