#ifndef MLA_MODEL_GENERATE_HPP_
#define MLA_MODEL_GENERATE_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generation_options.hpp"
#include "mla/model/multi_token_prediction.hpp"
#include "mla/model/text_generation.hpp"
#include "mla/ops/context.hpp"

namespace mla {

namespace detail {

/// One call of generate(): texts go through the model together, round by round. All memory is taken
/// in the constructor.
template <TokenSampler S>
class Generation {
 public:
  Generation(const DecoderModel& model, std::span<const GenerationTask<S>> tasks, Context& context)
      : model_(model), context_(context) {
    const std::size_t count = tasks.size();
    texts_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) texts_.emplace_back(model, tasks[i], i);
    Index states = 0, speculative = 0, most_logits = std::ssize(texts_);
    for (const TextGeneration<S>& text : texts_) {
      states += text.most_wanted();
      most_logits += text.most_drafts();
      speculative += text.options().speculative;
      chunk_tokens_ =
          std::max({chunk_tokens_, text.options().chunk_tokens, text.most_drafts() + 1});
    }
    hidden_.resize(states, model.hidden_size());
    head_input_.resize(most_logits, model.hidden_size());
    logits_.resize(most_logits, model.vocab_size());
    draft_hidden_.resize(speculative, model.hidden_size());
    draft_logits_.resize(speculative, model.vocab_size());
    active_.reserve(count);
    steps_.reserve(count);
    predictions_.reserve(count);
    drafting_.reserve(count);
    still_drafting_.reserve(count);
  }

  std::vector<GenerationResult> run() {
    while (round()) {
    }
    return results();
  }

  /// A pass through the model for all texts that are not done; false: there are none. Where it
  /// throws, all states are as they were before the first round.
  bool round() {
    try {
      if (!begin_round()) return false;
      forward();
      draft();
      for (TextGeneration<S>* text : active_)
        if (text->done()) text->finish();
      return true;
    } catch (...) {
      for (TextGeneration<S>& text : texts_) text.roll_back();
      throw;
    }
  }

  /// No more rounds: states of texts that are not done are left with what was written.
  void stop() {
    for (TextGeneration<S>& text : texts_)
      if (!text.done()) text.finish();
  }

  std::vector<GenerationResult> results() const {
    std::vector<GenerationResult> results;
    for (const TextGeneration<S>& text : texts_) results.push_back(text.result());
    return results;
  }

 private:
  // Whether any text is not done.
  bool begin_round() {
    active_.clear();
    steps_.clear();
    for (TextGeneration<S>& text : texts_)
      if (!text.done()) {
        active_.push_back(&text);
        steps_.push_back(text.step());
      }
    return !active_.empty();
  }

  // All texts' steps through the model, and its head where somebody chooses a token.
  void forward() {
    Index states = 0;
    for (const TextStep& step : steps_) states += step.wanted;
    model_.forward_hidden(steps_, hidden_.topRows(states), context_,
                          {.chunk_tokens = chunk_tokens_});
    Index end = 0, wanted = 0;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      end += steps_[i].wanted;
      const Index rows = active_[i]->logits_wanted();
      head_input_.middleRows(wanted, rows) = hidden_.middleRows(end - rows, rows);
      wanted += rows;
    }
    model_.head(head_input_.topRows(wanted), logits_.topRows(wanted), context_);
    Index state = 0, row = 0;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      const Index rows = active_[i]->logits_wanted();
      active_[i]->take(view_of(hidden_).row_range(state, steps_[i].wanted),
                       view_of(logits_).row_range(row, rows));
      state += steps_[i].wanted;
      row += rows;
    }
  }

  // The drafts of texts. The module for multi-token prediction makes one after the other, of those
  // that want another one.
  void draft() {
    predictions_.clear();
    drafting_.clear();
    for (TextGeneration<S>* text : active_) {
      const PredictionStep step = text->prediction();
      if (!step.cache) continue;
      predictions_.push_back(step);
      if (step.wanted > 0) drafting_.push_back(text);
    }
    while (!predictions_.empty()) predict();
  }

  // A call of the module, and what it is to compute in the next one.
  void predict() {
    const Index drafts = std::ssize(drafting_);
    model_.prediction()->states(predictions_, draft_hidden_.topRows(drafts), context_);
    model_.prediction()->head(draft_hidden_.topRows(drafts), draft_logits_.topRows(drafts),
                              context_);
    predictions_.clear();
    still_drafting_.clear();
    for (Index i = 0; i < drafts; ++i) {
      TextGeneration<S>* const text = drafting_[static_cast<std::size_t>(i)];
      text->take_draft({draft_logits_.row(i).data(), static_cast<std::size_t>(model_.vocab_size())},
                       draft_hidden_.row(i).data());
      const PredictionStep step = text->next_prediction();
      if (!step.cache) continue;
      predictions_.push_back(step);
      still_drafting_.push_back(text);
    }
    drafting_.swap(still_drafting_);
  }

  const DecoderModel& model_;
  Context& context_;
  std::vector<TextGeneration<S>> texts_;
  Index chunk_tokens_ = 1;

  // Of a round.
  std::vector<TextGeneration<S>*> active_;
  std::vector<TextStep> steps_;                     // of each
  std::vector<PredictionStep> predictions_;         // of some
  std::vector<TextGeneration<S>*> drafting_;        // whose predictions want logits
  std::vector<TextGeneration<S>*> still_drafting_;  // of these, in the next call of the module
  RowMajorMatrix hidden_;                           // [states, hidden_size]
  RowMajorMatrix head_input_;    // [rows, hidden_size] of these, that need logits
  RowMajorMatrix logits_;        // [rows, vocab_size]
  RowMajorMatrix draft_hidden_;  // [drafts, hidden_size]
  RowMajorMatrix draft_logits_;  // [drafts, vocab_size]
};

}  // namespace detail

/// Continues several texts together: each by its prompt, and then by what the model writes, until a
/// token ends it, max_tokens are written, or the context is full. Every text gets the tokens that
/// it would get alone, but weights are read once for all, so that a few texts take little longer
/// than one. Texts that are done drop out. Afterwards each state has all of its text but the last
/// generated token, which no forward pass has seen. From the second token on nothing is allocated.
/// Callbacks come text by text within a round. Throws std::invalid_argument for an empty prompt, a
/// prompt that is longer than the context, a token that is not in the vocabulary, or a state that
/// is missing or used twice. Whatever is thrown, also by a callback, the states are unchanged.
template <TokenSampler S>
std::vector<GenerationResult> generate(const DecoderModel& model,
                                       std::span<const GenerationTask<S>> tasks, Context& context) {
  return detail::Generation<S>(model, tasks, context).run();
}
template <TokenSampler S>
std::vector<GenerationResult> generate(const DecoderModel& model,
                                       const std::vector<GenerationTask<S>>& tasks,
                                       Context& context) {
  return generate(model, std::span<const GenerationTask<S>>(tasks), context);
}

/// One text.
template <TokenSampler S>
GenerationResult generate(const DecoderModel& model, DecoderState& state,
                          std::span<const TokenId> prompt, S& sampler, Context& context,
                          const GenerationOptions& options = {}) {
  const GenerationTask<S> task = {&state, prompt, &sampler, options};
  return generate(model, std::span(&task, 1), context).front();
}

}  // namespace mla

#endif  // MLA_MODEL_GENERATE_HPP_
