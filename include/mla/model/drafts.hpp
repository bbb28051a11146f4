#ifndef MLA_MODEL_DRAFTS_HPP_
#define MLA_MODEL_DRAFTS_HPP_

#include <cstddef>
#include <span>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/draft_lookup.hpp"
#include "mla/model/generation_options.hpp"
#include "mla/model/speculative.hpp"

namespace mla::detail {

/// The drafts of a text: tokens that are to follow it, until the model has verified them. All
/// memory is taken in the constructor.
template <TokenSampler S>
class Drafts {
 public:
  /// At most `most` at a time. Where `drawn`, there is room for what each of them is drawn from.
  Drafts(Index most, Index vocab_size, bool drawn)
      : tokens_(static_cast<std::size_t>(most) + 1),
        vocab_size_(static_cast<std::size_t>(vocab_size)),
        wanted_(most > 0 ? vocab_size_ : 0),
        drawn_(drawn ? static_cast<std::size_t>(most) * vocab_size_ : 0) {}

  Index count() const noexcept { return count_; }
  void clear() noexcept { count_ = 0; }
  std::span<const TokenId> tokens() const noexcept {
    return std::span(tokens_).subspan(1, static_cast<std::size_t>(count_));
  }
  /// `last` and the drafts after it: what the model is to verify.
  std::span<const TokenId> after(TokenId last) noexcept {
    tokens_[0] = last;
    return std::span(tokens_).first(static_cast<std::size_t>(count_) + 1);
  }

  /// As many as `count`, by the text; none where it finds nothing.
  void look_up(const DraftLookup& lookup, Index count) noexcept {
    const bool found =
        count > 0 && lookup.find(std::span(tokens_).subspan(1, static_cast<std::size_t>(count)));
    count_ = found ? count : 0;
    looked_up_ = true;
  }

  /// One more, by logits [vocab_size] of multi-token prediction. `text` has the drafts before it.
  void draw(S& sampler, std::span<const float> logits, std::span<const TokenId> text) {
    TokenId token = 0;
    if (sampler.greedy()) {
      token = sampler.next(logits, text);
    } else {
      sampler.probabilities(logits, text, drawn_from(count_));
      token = sampler.sample(drawn_from(count_));
    }
    looked_up_ = false;
    tokens_[static_cast<std::size_t>(++count_)] = token;
  }

  /// The token in the place of draft i after `text`, for which the model gave `logits`: the draft,
  /// if it is right. It is distributed as the sampler says, whatever the drafts are.
  TokenId verify(S& sampler, Index i, std::span<const float> logits,
                 std::span<const TokenId> text) {
    if (sampler.greedy()) return sampler.next(logits, text);
    const TokenId draft = tokens()[static_cast<std::size_t>(i)];
    sampler.probabilities(logits, text, wanted_);
    if (looked_up_) {
      if (accept_draft(wanted_, draft, sampler.uniform())) return draft;
      take_residual(wanted_, draft);
    } else {
      if (accept_draft(wanted_, drawn_from(i), draft, sampler.uniform())) return draft;
      take_residual(wanted_, drawn_from(i));
    }
    return sampler.sample(wanted_);
  }

 private:
  std::span<float> drawn_from(Index i) noexcept {
    return std::span(drawn_).subspan(static_cast<std::size_t>(i) * vocab_size_, vocab_size_);
  }

  std::vector<TokenId> tokens_;  // [1 + most] the last certain token, then drafts
  std::size_t vocab_size_;
  std::vector<float> wanted_;  // [vocab_size] probabilities of the place of a draft
  std::vector<float> drawn_;   // [most, vocab_size] those that the drafts were drawn from
  Index count_ = 0;
  bool looked_up_ = false;  // not drawn: all of their probability is on them
};

}  // namespace mla::detail

#endif  // MLA_MODEL_DRAFTS_HPP_
