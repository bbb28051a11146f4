#ifndef MLA_MODEL_TEXT_GENERATION_HPP_
#define MLA_MODEL_TEXT_GENERATION_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/draft_lookup.hpp"
#include "mla/model/drafts.hpp"
#include "mla/model/generated_text.hpp"
#include "mla/model/generation_options.hpp"
#include "mla/model/multi_token_prediction.hpp"

namespace mla::detail {

/// One text of a call of generate(): what it wants to have computed next, and what it makes of
/// that. A round of a text is
///   step()             the tokens that go through the model next: a chunk of the prompt, or the
///                      last token and its drafts
///   take()             their states and logits: chooses tokens
///   prediction()       looks up drafts; what multi-token prediction shall compute of the states
///   take_draft()       its logits and its state, where it wanted any
///   next_prediction()  what it shall compute of that state, for one more draft
/// until done(). All memory is taken in the constructor.
template <TokenSampler S>
class TextGeneration {
 public:
  /// `index`: number of the text in the call, for messages.
  TextGeneration(const DecoderModel& model, const GenerationTask<S>& task, std::size_t index)
      : state_(task.state),
        sampler_(task.sampler),
        text_((require_task(task, index), model), task, index),
        decode_mode_(task.options.decode_mode == AttentionForm::automatic
                         ? AttentionForm::absorbed
                         : task.options.decode_mode),
        predicting_(options().speculative),
        drafts_(predicting_ || options().lookup > 0 ? options().draft_tokens : 0,
                model.vocab_size(), predicting_ && !task.sampler->greedy()) {
    predicted_past_ = state_->prediction() ? state_->prediction()->size() : 0;
    if (options().lookup > 0) {
      lookup_.emplace(options().lookup);
      lookup_->reserve(std::ssize(task.history) + text_.most_rows() - text_.past());
      lookup_->append(task.history);
      lookup_->append(text_.tokens());
    }
    if (window()) before_ = state_->fork(text_.past());  // what slid out cannot be taken back
    const Index at_once = std::max(options().chunk_tokens, most_drafts() + 1);
    state_->reserve(window() ? std::min(text_.most_rows(), window().most() + at_once)
                             : text_.most_rows());
    if (!predicting_) return;
    hidden_.resize(std::max(most_drafts() + 1, std::min(options().chunk_tokens, text_.prompt())),
                   model.hidden_size());
    predicted_hidden_.resize(1, model.hidden_size());
  }

  bool done() const noexcept { return text_.done(); }
  const GenerationResult& result() const noexcept { return text_.result(); }
  const GenerationOptions& options() const noexcept { return text_.options(); }
  /// Drafts of a step, at most.
  Index most_drafts() const noexcept { return predicting_ || lookup_ ? options().draft_tokens : 0; }
  /// States that a step wants, at most.
  Index most_wanted() const noexcept { return std::max(most_drafts() + 1, hidden_.rows()); }

  /// The tokens that go through the model next, and how many of their states are wanted.
  TextStep step() {
    if (text_.in_prompt()) {
      const Index count = text_.chunk();
      const Index wanted = predicting_ ? count : text_.last_chunk() ? 1 : 0;
      return {state_, text_.tokens(text_.prompted(), count), wanted, options().prefill_mode,
              window()};
    }
    first_ = state_->size() + slid_;
    return {state_, drafts_.after(text_.last()), drafts_.count() + 1, decode_mode_, window()};
  }

  /// How many of the last wanted states need logits.
  Index logits_wanted() const noexcept {
    if (!text_.in_prompt()) return drafts_.count() + 1;
    return text_.last_chunk() && text_.can_write() ? 1 : 0;
  }

  /// The wanted states [n, hidden_size] of step(), and logits [logits_wanted(), vocab_size].
  void take(MatrixView<const float> hidden, MatrixView<const float> logits) {
    for (Index t = 0; predicting_ && t < hidden.rows; ++t)
      std::copy_n(hidden.row(t), hidden.cols, hidden_.row(t).data());
    if (text_.in_prompt())
      take_prompt(logits);
    else
      take_tokens(logits);
  }

  /// What multi-token prediction shall compute of the states that were taken; without a cache:
  /// nothing. Where one row is wanted, take_draft() takes it.
  PredictionStep prediction() {
    const Index room = std::min(most_drafts(), text_.room_for_drafts());
    wanted_drafts_ = done() || text_.in_prompt() ? 0 : std::max<Index>(0, room);
    if (lookup_) drafts_.look_up(*lookup_, wanted_drafts_);
    text_.result().drafted_tokens += drafts_.count();
    if (!predicting_ || pending_ == 0) return {};
    if (!text_.in_prompt() && wanted_drafts_ == 0) {
      predicting_ = false;              // no more drafts from here on
      if (--pending_ == 0) return {};   // its token has no place, or is not known
      if (!prompt_pending_) return {};  // nobody will look back
    }
    const bool draft = wanted_drafts_ > 0 && drafts_.count() == 0;
    const PredictionStep step = {.hidden = {hidden_.data(), pending_, hidden_.cols()},
                                 .next_tokens = text_.tokens(first_ - text_.past() + 1, pending_),
                                 .first_position = first_ - slid_,
                                 .cache = state_->prediction(),
                                 .wanted = draft ? 1 : 0,
                                 .mode = draft ? decode_mode_ : options().prefill_mode};
    predicted_position_ = step.first_position + pending_ - 1;
    pending_ = 0;
    prompt_pending_ = false;
    return step;
  }

  /// Of the row that was wanted: logits [vocab_size] to draw a draft by, and the module's state
  /// [hidden_size].
  void take_draft(std::span<const float> logits, const float* hidden) {
    LatentCache& cache = *state_->prediction();
    if (drafts_.count() == 0) predicted_rows_ = cache.size();
    text_.with(drafts_.tokens(),
               [&](std::span<const TokenId> text) { drafts_.draw(*sampler_, logits, text); });
    ++text_.result().drafted_tokens;
    std::copy_n(hidden, predicted_hidden_.cols(), predicted_hidden_.data());
    // Rows of drafts are of tokens that are not certain, and of states that are guesses.
    if (drafts_.count() == wanted_drafts_) cache.truncate(predicted_rows_);
  }

  /// What the module shall compute of its own state and the last draft; without a cache: nothing.
  PredictionStep next_prediction() {
    if (drafts_.count() == wanted_drafts_) return {};
    return {.hidden = view_of(predicted_hidden_),
            .next_tokens = drafts_.tokens().last(1),
            .first_position = predicted_position_ + drafts_.count(),
            .cache = state_->prediction(),
            .wanted = 1,
            .mode = decode_mode_};
  }

  /// Leaves in the state all of the text but the last generated token.
  void finish() {
    const Index kept = std::max(text_.prompt(), text_.size() - 1);
    state_->truncate(std::min(state_->size(), text_.past() + kept - slid_));
    state_->slide(window(), state_->size() - 1);
    text_.finish();
  }

  /// Leaves the state as it was.
  void roll_back() noexcept {  // NOLINT(bugprone-exception-escape): there are never fewer tokens
    if (before_) {
      *state_ = std::move(*before_);
      return;
    }
    state_->truncate_layers(std::min(text_.past(), state_->size()));
    if (LatentCache* prediction = state_->prediction())
      prediction->truncate(std::min(predicted_past_, prediction->size()));
  }

 private:
  static void require_task(const GenerationTask<S>& task, std::size_t index) {
    require(task.state != nullptr && task.sampler != nullptr, "text ", index,
            " needs a state and a sampler");
  }

  const SlidingWindow& window() const noexcept { return options().window; }

  // A chunk of the prompt is done; its last state of all waits for the token that follows it.
  void take_prompt(MatrixView<const float> logits) {
    first_ = text_.past() + text_.prompted();
    pending_ = text_.chunk();
    prompt_pending_ = true;
    slid_ = first_ + pending_ - state_->size();
    if (text_.advance() && !text_.in_prompt()) emit(next(logits, 0));
  }

  // The last token and its drafts are done: takes the drafts that are right, and a token more.
  void take_tokens(MatrixView<const float> logits) {
    const Index count = drafts_.count();
    slid_ = first_ + 1 + count - state_->size();
    ++text_.result().decode_calls;
    for (pending_ = 1;; ++pending_) {
      const Index i = pending_ - 1;
      const TokenId token = i == count
                                ? next(logits, i)
                                : drafts_.verify(*sampler_, i, row(logits, i), text_.tokens());
      const bool right = i < count && token == drafts_.tokens()[static_cast<std::size_t>(i)];
      text_.result().accepted_tokens += right;
      if (!right && i < count) state_->truncate_layers(first_ + pending_ - slid_);
      if (!emit(token) || !right) break;
    }
    drafts_.clear();
  }

  bool emit(TokenId token) {
    const Index before = text_.size();
    const bool more = text_.emit(token);
    if (lookup_) lookup_->append(text_.tokens(before, text_.size() - before));
    return more;
  }

  TokenId next(MatrixView<const float> logits, Index r) {
    return sampler_->next(row(logits, r), text_.tokens());
  }
  static std::span<const float> row(MatrixView<const float> matrix, Index r) {
    return {matrix.row(r), static_cast<std::size_t>(matrix.cols)};
  }

  DecoderState* state_;
  S* sampler_;
  GeneratedText text_;
  AttentionForm decode_mode_;
  Index predicted_past_ = 0;  // rows in the cache of multi-token prediction before the call
  Index slid_ = 0;            // tokens that a window has left behind
  std::optional<DecoderState> before_;  // the state before the call, where there is a window

  bool predicting_;  // by multi-token prediction, as long as there is room for two tokens
  Drafts<S> drafts_;
  std::optional<DraftLookup> lookup_;
  Index wanted_drafts_ = 0;          // after the last token
  RowMajorMatrix hidden_;            // [chunk or 1 + drafts, hidden_size] states of the last step
  Index pending_ = 0;                // of these, the first ones that prediction has not seen
  Index first_ = 0;                  // position of the first of them
  bool prompt_pending_ = false;      // they are of the prompt
  RowMajorMatrix predicted_hidden_;  // [1, hidden_size] the module's own, of the last draft
  Index predicted_position_ = 0;     // of the state that the first draft was made of
  Index predicted_rows_ = 0;         // in the module's cache without those of drafts
};

}  // namespace mla::detail

#endif  // MLA_MODEL_TEXT_GENERATION_HPP_
