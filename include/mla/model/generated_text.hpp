#ifndef MLA_MODEL_GENERATED_TEXT_HPP_
#define MLA_MODEL_GENERATED_TEXT_HPP_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/attention/paged_rows.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generation_options.hpp"

namespace mla::detail {

/// The text of a task of generate() as it grows: its prompt, of which a part is done, and what was
/// generated, until there is a reason to stop.
class GeneratedText {
 public:
  /// Of a task whose state is not nullptr. Throws std::invalid_argument for what does not fit.
  template <TokenSampler S>
  GeneratedText(const DecoderModel& model, const GenerationTask<S>& task, std::size_t index)
      : model_(model),
        state_(*task.state),
        options_(task.options),
        tokens_(task.prompt.begin(), task.prompt.end()) {
    check(index);
    past_ = state_.size();
    result_.prompt_tokens = std::ssize(tokens_);
    const Index most = window() ? PagedRows::kMaxRows : longest();
    most_rows_ = past_ + prompt() + std::min(most - past_ - prompt(), options_.max_tokens);
    constexpr Index kReserved = Index{1} << 20;  // tokens that there is room for at once
    tokens_.reserve(static_cast<std::size_t>(std::min(most_rows_ - past_, kReserved)) + 1);
  }

  const GenerationOptions& options() const noexcept { return options_; }
  GenerationResult& result() noexcept { return result_; }
  const GenerationResult& result() const noexcept { return result_; }
  bool done() const noexcept { return done_; }

  /// Prompt and what was generated.
  std::span<const TokenId> tokens() const noexcept { return tokens_; }
  std::span<const TokenId> tokens(Index first, Index count) const {
    return tokens().subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  }
  TokenId last() const noexcept { return tokens_.back(); }
  Index size() const noexcept { return std::ssize(tokens_); }
  /// The text with `drafts` after it, for as long as `look(text)` runs.
  template <class Look>
  void with(std::span<const TokenId> drafts, const Look& look) {
    const std::size_t before = tokens_.size();
    tokens_.insert(tokens_.end(), drafts.begin(), drafts.end());
    try {
      look(tokens());
    } catch (...) {
      tokens_.resize(before);
      throw;
    }
    tokens_.resize(before);
  }

  /// Tokens in the state before the text.
  Index past() const noexcept { return past_; }
  /// Rows that the state of the text may come to have, without a window.
  Index most_rows() const noexcept { return most_rows_; }

  Index prompt() const noexcept { return result_.prompt_tokens; }
  /// Tokens of the prompt that are done.
  Index prompted() const noexcept { return prompted_; }
  bool in_prompt() const noexcept { return prompted_ < prompt(); }
  /// Tokens of the prompt that come next.
  Index chunk() const noexcept { return std::min(options_.chunk_tokens, prompt() - prompted_); }
  bool last_chunk() const noexcept { return prompted_ + chunk() == prompt(); }

  const SlidingWindow& window() const noexcept { return options_.window; }
  /// Whether there is a place for a token after the prompt.
  bool can_write() const noexcept {
    return options_.max_tokens > 0 && (window() || past_ + prompt() < longest());
  }
  /// Drafts after the last token that are wanted and have a place, with one token more.
  Index room_for_drafts() const noexcept {
    const Index wanted = options_.max_tokens - result_.generated_tokens - 1;
    return window() ? wanted : std::min(wanted, longest() - past_ - size() - 1);
  }

  /// A chunk of the prompt is done. False: the text ends here.
  bool advance() {
    prompted_ += chunk();
    const bool cancelled = options_.on_prefill && !options_.on_prefill(prompted_, prompt());
    if (!in_prompt() || cancelled) {
      prefilled_ = Clock::now();
      result_.prefill_seconds = seconds(prefilled_ - start_);
    }
    if (cancelled)
      stop(StopReason::cancelled);
    else if (!in_prompt() && !can_write())
      stop(options_.max_tokens == 0 ? StopReason::max_tokens : StopReason::context_full);
    return !done_;
  }

  /// Adds a token to the text, if it is none that ends it. False: the text ends.
  bool emit(TokenId token) {
    const auto& eos = model_.config().eos_token_ids;
    if (options_.stop_at_eos && std::ranges::find(eos, token) != eos.end()) {
      stop(StopReason::end_of_text);
      return false;
    }
    tokens_.push_back(token);
    ++result_.generated_tokens;
    if (options_.on_token && !options_.on_token(token))
      stop(StopReason::cancelled);
    else if (result_.generated_tokens == options_.max_tokens)
      stop(StopReason::max_tokens);
    else if (!window() && past_ + size() == longest())
      stop(StopReason::context_full);
    return !done_;
  }

  void finish() { result_.decode_seconds = seconds(Clock::now() - prefilled_); }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  }

  void check(std::size_t index) const {
    require(!tokens_.empty(), "the prompt is empty (text ", index, ")");
    require(options_.max_tokens >= 0, "max_tokens must not be negative, got ", options_.max_tokens);
    require(options_.chunk_tokens > 0, "chunk_tokens must be positive, got ",
            options_.chunk_tokens);
    require(options_.draft_tokens >= 1 && options_.draft_tokens <= GenerationOptions::kMostDrafts,
            "draft_tokens must be from 1 to ", GenerationOptions::kMostDrafts, ", got ",
            options_.draft_tokens);
    require(options_.lookup >= 0, "lookup must not be negative, got ", options_.lookup);
    require_state(model_.config(), state_, " of text ", index);
    const Index past = state_.size();
    require_window(window(), longest());
    require(window() || size() <= longest() - past, "a prompt of ", size(), " tokens after ", past,
            " is longer than max_position_embeddings ", longest());
    require(!options_.speculative || (model_.prediction() && state_.prediction()),
            "speculative decoding needs a module for multi-token prediction, which this ",
            model_.prediction() ? "state" : "model", " does not have");
  }

  // Tokens that the text may have in all.
  Index longest() const noexcept {
    return std::min(model_.max_position_embeddings(), state_.context_tokens());
  }

  void stop(StopReason reason) noexcept {
    result_.stop = reason;
    done_ = true;
  }

  const DecoderModel& model_;
  const DecoderState& state_;
  GenerationOptions options_;
  std::vector<TokenId> tokens_;
  Index past_ = 0;
  Index most_rows_ = 0;
  Index prompted_ = 0;
  bool done_ = false;

  Clock::time_point start_ = Clock::now();
  Clock::time_point prefilled_ = start_;
  GenerationResult result_;
};

}  // namespace mla::detail

#endif  // MLA_MODEL_GENERATED_TEXT_HPP_
