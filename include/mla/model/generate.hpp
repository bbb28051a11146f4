#ifndef MLA_MODEL_GENERATE_HPP_
#define MLA_MODEL_GENERATE_HPP_

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <vector>

#include "mla/attention/cost_model.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generation_options.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/speculative.hpp"
#include "mla/ops/context.hpp"

namespace mla {

namespace detail {

/// One call of generate(). All memory is taken in the constructor.
template <TokenSampler S>
class Generation {
 public:
  Generation(const DecoderModel& model, DecoderState& state, std::span<const TokenId> prompt,
             S& sampler, Context& context, const GenerationOptions& options)
      : model_(model),
        state_(state),
        sampler_(sampler),
        context_(context),
        options_(options),
        past_(state.size()),
        predicted_past_(state.prediction() ? state.prediction()->size() : 0),
        text_(prompt.begin(), prompt.end()) {
    check();
    if (options_.decode_mode == Mode::automatic) options_.decode_mode = Mode::absorbed;
    result_.prompt_tokens = std::ssize(text_);
    const Index room = model.max_position_embeddings() - past_ - result_.prompt_tokens;
    const Index all = past_ + result_.prompt_tokens + std::min(room, options.max_tokens);
    state.reserve(all);
    text_.reserve(static_cast<std::size_t>(all - past_) + 1);
    const Index rows = std::min(options.chunk_tokens, result_.prompt_tokens);
    hidden_.resize(std::max<Index>(2, rows), model.hidden_size());
    logits_.resize(2, model.vocab_size());
    if (!options.speculative) return;
    draft_logits_.resize(1, model.vocab_size());
    probabilities_.resize(static_cast<std::size_t>(model.vocab_size()));
    draft_probabilities_.resize(static_cast<std::size_t>(model.vocab_size()));
  }

  GenerationResult run() {
    try {
      const auto start = Clock::now();
      const bool ready = prefill();
      const auto prefilled = Clock::now();
      if (ready) options_.speculative ? decode_speculatively() : decode();
      const Index kept = std::max(result_.prompt_tokens, std::ssize(text_) - 1);
      state_.truncate(std::min(state_.size(), past_ + kept));
      result_.prefill_seconds = seconds(prefilled - start);
      result_.decode_seconds = seconds(Clock::now() - prefilled);
      return result_;
    } catch (...) {
      state_.truncate_layers(past_);
      if (state_.prediction()) state_.prediction()->truncate(predicted_past_);
      throw;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  }

  void check() const {
    require(!text_.empty(), "the prompt is empty");
    require(options_.max_tokens >= 0, "max_tokens must not be negative, got ", options_.max_tokens);
    require(options_.chunk_tokens > 0, "chunk_tokens must be positive, got ",
            options_.chunk_tokens);
    require(state_.fits(model_.config()), "the state was made for another model");
    require(std::ssize(text_) <= model_.max_position_embeddings() - past_, "a prompt of ",
            text_.size(), " tokens after ", past_, " is longer than max_position_embeddings ",
            model_.max_position_embeddings());
    require(!options_.speculative || (model_.prediction() && state_.prediction()),
            "speculative decoding needs a module for multi-token prediction, which this ",
            model_.prediction() ? "state" : "model", " does not have");
  }

  // Passes the prompt through the model; leaves the logits of its last token in row 0. False: there
  // is nothing to generate.
  bool prefill() {
    const Index all = result_.prompt_tokens;
    for (Index first = 0; first < all; first += options_.chunk_tokens) {
      const Index count = std::min(options_.chunk_tokens, all - first);
      const auto chunk = tokens(first, count);
      model_.forward_hidden(chunk, state_, hidden_.topRows(count), context_,
                            {.mode = options_.prefill_mode, .chunk_tokens = count});
      // The last state of all waits for the token that follows it.
      const Index slots = first + count < all ? count : count - 1;
      if (options_.speculative)
        predict(hidden_.topRows(slots), tokens(first + 1, slots), past_ + first,
                options_.prefill_mode, draft_logits_.topRows(0));
      if (options_.on_prefill && !options_.on_prefill(first + count, all))
        return stop(StopReason::cancelled);
      if (first + count == all && count > 1) hidden_.row(0) = hidden_.row(count - 1);
    }
    if (options_.max_tokens == 0) return stop(StopReason::max_tokens);
    if (past_ + all == model_.max_position_embeddings()) return stop(StopReason::context_full);
    model_.head(hidden_.topRows(1), logits_.topRows(1), context_);
    return true;
  }

  void decode() {
    while (emit(next(0))) {
      model_.forward(last_tokens(1), state_, logits_.topRows(1), context_, decode_options());
    }
  }

  // Before each step, `pending` states from position `first` on wait in hidden_ to be drafted from.
  void decode_speculatively() {
    TokenId token = next(0);
    for (Index pending = 1, first = state_.size() - 1; emit(token);) {
      if (!can_draft()) {
        model_.forward(last_tokens(1), state_, logits_.topRows(1), context_, decode_options());
        token = next(0);
        pending = 0;  // no drafts from here on
        continue;
      }
      predict(hidden_.topRows(pending), last_tokens(pending), first, options_.decode_mode,
              draft_logits_);
      first = state_.size();
      const std::array drafted = {token, draft()};
      model_.forward_hidden(drafted, state_, hidden_.topRows(2), context_, decode_options());
      model_.head(hidden_.topRows(2), logits_, context_);
      token = verify(drafted[1]);
      const bool accepted = token == drafted[1];
      result_.accepted_tokens += accepted;
      if (!accepted) {
        state_.truncate_layers(first + 1);
        pending = 1;
        continue;
      }
      if (!emit(token)) return;
      token = next(1);
      pending = 2;
    }
  }

  DecoderOptions decode_options() const { return {.mode = options_.decode_mode}; }

  bool stop(StopReason reason) noexcept {
    result_.stop = reason;
    return false;
  }

  // Adds a token to the text. False, and why, when it is the last one.
  bool emit(TokenId token) {
    const auto& eos = model_.config().eos_token_ids;
    if (options_.stop_at_eos && std::ranges::find(eos, token) != eos.end())
      return stop(StopReason::end_of_text);
    text_.push_back(token);
    ++result_.generated_tokens;
    if (options_.on_token && !options_.on_token(token)) return stop(StopReason::cancelled);
    if (result_.generated_tokens == options_.max_tokens) return stop(StopReason::max_tokens);
    if (past_ + std::ssize(text_) == model_.max_position_embeddings())
      return stop(StopReason::context_full);
    return true;
  }

  // Whether two more tokens are wanted and have a place.
  bool can_draft() const {
    return result_.generated_tokens + 2 <= options_.max_tokens &&
           state_.size() + 2 <= model_.max_position_embeddings();
  }

  // Logits of the token after the next, by multi-token prediction from `hidden` and the tokens that
  // follow these states.
  void predict(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
               Index first_position, Mode mode, Eigen::Ref<RowMajorMatrix> logits) {
    model_.prediction()->forward(hidden, next_tokens, first_position, *state_.prediction(), logits,
                                 context_, mode);
  }

  // Draws a draft, and keeps what it was drawn from.
  TokenId draft() {
    ++result_.drafted_tokens;
    if (sampler_.greedy()) return sampler_.next(row(draft_logits_, 0), text_);
    sampler_.probabilities(row(draft_logits_, 0), text_, draft_probabilities_);
    return sampler_.sample(draft_probabilities_);
  }

  // The token in the draft's place: the draft, if it is accepted.
  TokenId verify(TokenId draft) {
    if (sampler_.greedy()) return next(0);
    sampler_.probabilities(row(logits_, 0), text_, probabilities_);
    if (accept_draft(probabilities_, draft_probabilities_, draft, sampler_.uniform())) return draft;
    take_residual(probabilities_, draft_probabilities_);
    return sampler_.sample(probabilities_);
  }

  TokenId next(Index logits_row) { return sampler_.next(row(logits_, logits_row), text_); }

  static std::span<const float> row(const RowMajorMatrix& matrix, Index r) {
    return {matrix.data() + r * matrix.cols(), static_cast<std::size_t>(matrix.cols())};
  }
  std::span<const TokenId> tokens(Index first, Index count) const {
    return std::span(text_).subspan(static_cast<std::size_t>(first),
                                    static_cast<std::size_t>(count));
  }
  std::span<const TokenId> last_tokens(Index count) const {
    return tokens(std::ssize(text_) - count, count);
  }

  const DecoderModel& model_;
  DecoderState& state_;
  S& sampler_;
  Context& context_;
  GenerationOptions options_;
  Index past_;                              // tokens in the state before the call
  Index predicted_past_;                    // and in its cache of multi-token prediction
  std::vector<TokenId> text_;               // prompt and what was generated
  RowMajorMatrix hidden_;                   // [chunk or 2, hidden_size] of the last forward pass
  RowMajorMatrix logits_;                   // [2, vocab_size] of it
  RowMajorMatrix draft_logits_;             // [1, vocab_size]
  std::vector<float> probabilities_;        // [vocab_size] of the place of the draft
  std::vector<float> draft_probabilities_;  // [vocab_size] that the draft was drawn from
  GenerationResult result_;
};

}  // namespace detail

/// Continues the text in `state` by `prompt`, and then by what the model writes, until a token
/// ends it, max_tokens are written, or the context is full. Afterwards `state` has all of the text
/// but the last generated token, which no forward pass has seen. From the second token on nothing
/// is allocated. Throws std::invalid_argument for an empty prompt, a prompt that is longer than the
/// context, or a token that is not in the vocabulary. Whatever is thrown, also by a callback,
/// `state` is as it was.
template <TokenSampler S>
GenerationResult generate(const DecoderModel& model, DecoderState& state,
                          std::span<const TokenId> prompt, S& sampler, Context& context,
                          const GenerationOptions& options = {}) {
  return detail::Generation<S>(model, state, prompt, sampler, context, options).run();
}

}  // namespace mla

#endif  // MLA_MODEL_GENERATE_HPP_
