#ifndef MLA_MODEL_TEXT_GENERATION_HPP_
#define MLA_MODEL_TEXT_GENERATION_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generation_options.hpp"
#include "mla/model/multi_token_prediction.hpp"
#include "mla/model/speculative.hpp"

namespace mla::detail {

/// One text of a call of generate(): what it wants to have computed next, and what it makes of
/// that. A round of a text is
///   step()        the tokens that go through the model next: a chunk of the prompt, or the last
///                 token, or that and a draft
///   take()        their states and logits: chooses tokens
///   prediction()  what multi-token prediction shall compute of the states, for the next draft
///   take_draft()  its logits, where it wanted any
/// until done(). All memory is taken in the constructor.
template <TokenSampler S>
class TextGeneration {
 public:
  /// `index`: number of the text in the call, for messages.
  TextGeneration(const DecoderModel& model, const GenerationTask<S>& task, std::size_t index)
      : model_(model),
        state_(task.state),
        sampler_(task.sampler),
        options_(task.options),
        text_(task.prompt.begin(), task.prompt.end()) {
    check(index);
    if (options_.decode_mode == AttentionForm::automatic)
      options_.decode_mode = AttentionForm::absorbed;
    past_ = state_->size();
    predicted_past_ = state_->prediction() ? state_->prediction()->size() : 0;
    result_.prompt_tokens = std::ssize(text_);
    const Index most = window() ? PagedRows::kMaxRows : longest();
    const Index room = most - past_ - prompt();
    const Index all = past_ + prompt() + std::min(room, options_.max_tokens);
    if (window()) before_ = state_->fork(past_);  // what slid out cannot be taken back otherwise
    state_->reserve(window() ? std::min(all, window().most() + options_.chunk_tokens) : all);
    text_.reserve(static_cast<std::size_t>(std::min(all - past_, kReservedText)) + 1);
    drafting_ = options_.speculative;
    if (!drafting_) return;
    hidden_.resize(std::max<Index>(2, std::min(options_.chunk_tokens, prompt())),
                   model.hidden_size());
    probabilities_.resize(static_cast<std::size_t>(model.vocab_size()));
    draft_probabilities_.resize(static_cast<std::size_t>(model.vocab_size()));
  }

  bool done() const noexcept { return done_; }
  const GenerationResult& result() const noexcept { return result_; }
  const GenerationOptions& options() const noexcept { return options_; }
  /// States that a step wants, at most.
  Index most_wanted() const noexcept { return std::max<Index>(1, hidden_.rows()); }

  /// The tokens that go through the model next, and how many of their states are wanted.
  TextStep step() {
    if (in_prompt()) {
      const Index count = chunk();
      const Index wanted = drafting_ ? count : last_chunk() ? 1 : 0;
      return {state_, tokens(prompted_, count), wanted, options_.prefill_mode, window()};
    }
    first_ = state_->size() + slid_;
    if (!drafted_) return {state_, last_tokens(1), 1, options_.decode_mode, window()};
    pair_ = {text_.back(), draft_};
    return {state_, pair_, 2, options_.decode_mode, window()};
  }

  /// How many of the last wanted states need logits.
  Index logits_wanted() const noexcept {
    if (!in_prompt()) return drafted_ ? 2 : 1;
    return last_chunk() && can_write() ? 1 : 0;
  }

  /// The wanted states [n, hidden_size] of step(), and logits [logits_wanted(), vocab_size].
  void take(MatrixView<const float> hidden, MatrixView<const float> logits) {
    const Index cached = in_prompt() ? past_ + prompted_ + chunk() : first_ + (drafted_ ? 2 : 1);
    slid_ = cached - state_->size();
    for (Index t = 0; drafting_ && t < hidden.rows; ++t)
      std::copy_n(hidden.row(t), hidden.cols, hidden_.row(t).data());
    if (in_prompt())
      take_prompt(logits);
    else if (drafted_)
      take_pair(logits);
    else
      emit(next(logits, 0));
  }

  /// What multi-token prediction shall compute of the states that were taken; without a cache:
  /// nothing. Where one row is wanted, take_draft() takes it.
  PredictionStep prediction() {
    if (!drafting_ || pending_ == 0) return {};
    const bool draft = !in_prompt() && !done_ && can_draft();
    if (!in_prompt() && !draft) {
      drafting_ = false;                // no more drafts from here on
      if (--pending_ == 0) return {};   // its token has no place, or is not known
      if (!prompt_pending_) return {};  // nobody will look back
    }
    const PredictionStep step = {.hidden = {hidden_.data(), pending_, hidden_.cols()},
                                 .next_tokens = tokens(first_ - past_ + 1, pending_),
                                 .first_position = first_ - slid_,
                                 .cache = state_->prediction(),
                                 .wanted = draft ? 1 : 0,
                                 .mode = draft ? options_.decode_mode : options_.prefill_mode};
    pending_ = 0;
    prompt_pending_ = false;
    return step;
  }

  /// logits [vocab_size] of the token after the next: draws a draft, and keeps what it was drawn
  /// from.
  void take_draft(const float* logits) {
    ++result_.drafted_tokens;
    drafted_ = true;
    const std::span<const float> row(logits, static_cast<std::size_t>(model_.vocab_size()));
    if (sampler_->greedy()) {
      draft_ = sampler_->next(row, text_);
      return;
    }
    sampler_->probabilities(row, text_, draft_probabilities_);
    draft_ = sampler_->sample(draft_probabilities_);
  }

  /// Leaves in the state all of the text but the last generated token.
  void finish() {
    const Index kept = std::max(prompt(), std::ssize(text_) - 1);
    state_->truncate(std::min(state_->size(), past_ + kept - slid_));
    state_->slide(window(), state_->size() - 1);
    result_.decode_seconds = seconds(Clock::now() - prefilled_);
  }

  /// Leaves the state as it was.
  void roll_back() noexcept {  // NOLINT(bugprone-exception-escape): there are never fewer tokens
    if (before_) {
      *state_ = std::move(*before_);
      return;
    }
    state_->truncate_layers(std::min(past_, state_->size()));
    if (LatentCache* prediction = state_->prediction())
      prediction->truncate(std::min(predicted_past_, prediction->size()));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr Index kReservedText = Index{1} << 20;  // tokens that there is room for at once
  static double seconds(Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  }

  void check(std::size_t index) const {
    require(state_ != nullptr && sampler_ != nullptr, "text ", index,
            " needs a state and a sampler");
    require(!text_.empty(), "the prompt is empty (text ", index, ")");
    require(options_.max_tokens >= 0, "max_tokens must not be negative, got ", options_.max_tokens);
    require(options_.chunk_tokens > 0, "chunk_tokens must be positive, got ",
            options_.chunk_tokens);
    require_state(model_.config(), *state_, " of text ", index);
    const Index past = state_->size();
    require_window(options_.window, longest());
    require(options_.window || std::ssize(text_) <= longest() - past, "a prompt of ", text_.size(),
            " tokens after ", past, " is longer than max_position_embeddings ", longest());
    require(!options_.speculative || (model_.prediction() && state_->prediction()),
            "speculative decoding needs a module for multi-token prediction, which this ",
            model_.prediction() ? "state" : "model", " does not have");
  }

  const SlidingWindow& window() const noexcept { return options_.window; }
  // Tokens that the text may have in all.
  Index longest() const noexcept {
    return std::min(model_.max_position_embeddings(), state_->context_tokens());
  }
  Index prompt() const noexcept { return result_.prompt_tokens; }
  bool in_prompt() const noexcept { return prompted_ < prompt(); }
  Index chunk() const noexcept { return std::min(options_.chunk_tokens, prompt() - prompted_); }
  bool last_chunk() const noexcept { return prompted_ + chunk() == prompt(); }
  // Whether there is a place for a token after the prompt.
  bool can_write() const noexcept {
    return options_.max_tokens > 0 && (window() || past_ + prompt() < longest());
  }
  // Whether two more tokens are wanted and have a place.
  bool can_draft() const noexcept {
    return result_.generated_tokens + 2 <= options_.max_tokens &&
           (window() || state_->size() + 2 <= longest());
  }

  // A chunk of the prompt is done; its last state of all waits for the token that follows it.
  void take_prompt(MatrixView<const float> logits) {
    const Index count = chunk();
    first_ = past_ + prompted_;
    pending_ = count;
    prompt_pending_ = true;
    prompted_ += count;
    const bool cancelled = options_.on_prefill && !options_.on_prefill(prompted_, prompt());
    if (!in_prompt() || cancelled) {
      prefilled_ = Clock::now();
      result_.prefill_seconds = seconds(prefilled_ - start_);
    }
    if (cancelled)
      stop(StopReason::cancelled);
    else if (in_prompt())
      return;
    else if (options_.max_tokens == 0)
      stop(StopReason::max_tokens);
    else if (!can_write())
      stop(StopReason::context_full);
    else
      emit(next(logits, 0));
  }

  // A token and its draft are done.
  void take_pair(MatrixView<const float> logits) {
    drafted_ = false;
    pending_ = 1;
    const TokenId token = verify(logits);
    const bool accepted = token == draft_;
    result_.accepted_tokens += accepted;
    if (!accepted) state_->truncate_layers(first_ + 1 - slid_);
    if (!emit(token) || !accepted) return;
    pending_ = 2;
    emit(next(logits, 1));
  }

  void stop(StopReason reason) noexcept {
    result_.stop = reason;
    done_ = true;
  }

  // Adds a token to the text, if it is none that ends it. False: the text ends.
  bool emit(TokenId token) {
    const auto& eos = model_.config().eos_token_ids;
    if (options_.stop_at_eos && std::ranges::find(eos, token) != eos.end()) {
      stop(StopReason::end_of_text);
      return false;
    }
    text_.push_back(token);
    ++result_.generated_tokens;
    if (options_.on_token && !options_.on_token(token))
      stop(StopReason::cancelled);
    else if (result_.generated_tokens == options_.max_tokens)
      stop(StopReason::max_tokens);
    else if (!window() && past_ + std::ssize(text_) == longest())
      stop(StopReason::context_full);
    return !done_;
  }

  // The token in the draft's place: the draft, if it is accepted.
  TokenId verify(MatrixView<const float> logits) {
    if (sampler_->greedy()) return next(logits, 0);
    sampler_->probabilities(row(logits, 0), text_, probabilities_);
    if (accept_draft(probabilities_, draft_probabilities_, draft_, sampler_->uniform()))
      return draft_;
    take_residual(probabilities_, draft_probabilities_);
    return sampler_->sample(probabilities_);
  }

  TokenId next(MatrixView<const float> logits, Index r) {
    return sampler_->next(row(logits, r), text_);
  }
  static std::span<const float> row(MatrixView<const float> matrix, Index r) {
    return {matrix.row(r), static_cast<std::size_t>(matrix.cols)};
  }
  std::span<const TokenId> tokens(Index first, Index count) const {
    return std::span(text_).subspan(static_cast<std::size_t>(first),
                                    static_cast<std::size_t>(count));
  }
  std::span<const TokenId> last_tokens(Index count) const {
    return tokens(std::ssize(text_) - count, count);
  }

  const DecoderModel& model_;
  DecoderState* state_;
  S* sampler_;
  GenerationOptions options_;
  std::vector<TokenId> text_;  // prompt and what was generated
  Index past_ = 0;             // tokens in the state before the call
  Index predicted_past_ = 0;   // and in its cache of multi-token prediction
  Index prompted_ = 0;         // tokens of the prompt that are done
  Index slid_ = 0;             // tokens that a window has left behind
  bool done_ = false;

  std::optional<DecoderState> before_;  // the state before the call, where there is a window

  bool drafting_ = false;  // speculative, as long as there is room for two tokens
  bool drafted_ = false;   // `draft_` waits to be verified
  TokenId draft_ = 0;      // for the place after the last token
  std::array<TokenId, 2> pair_ = {};
  RowMajorMatrix hidden_;                   // [chunk or 2, hidden_size] states of the last step
  Index pending_ = 0;                       // of these, the first ones that prediction has not seen
  Index first_ = 0;                         // position of the first of them
  bool prompt_pending_ = false;             // they are of the prompt
  std::vector<float> probabilities_;        // [vocab_size] of the place of the draft
  std::vector<float> draft_probabilities_;  // [vocab_size] that the draft was drawn from

  Clock::time_point start_ = Clock::now();
  Clock::time_point prefilled_ = start_;
  GenerationResult result_;
};

}  // namespace mla::detail

#endif  // MLA_MODEL_TEXT_GENERATION_HPP_
