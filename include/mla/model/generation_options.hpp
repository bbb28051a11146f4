#ifndef MLA_MODEL_GENERATION_OPTIONS_HPP_
#define MLA_MODEL_GENERATION_OPTIONS_HPP_

#include <concepts>
#include <functional>
#include <span>
#include <string_view>

#include "mla/attention/cost_model.hpp"
#include "mla/attention/sliding_window.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_state.hpp"

// What goes into generate() and what comes out.

namespace mla {

/// Chooses tokens: Sampler, or one of your own.
///   next(logits [vocab_size], text)                 a token to follow `text`
///   greedy()                                        whether next() is the same at every call
///   probabilities(logits, text, out [vocab_size])   what next() draws from
///   sample(weights [vocab_size])                    draws by weights, which need not sum to 1
///   uniform()                                       a random number in [0, 1)
template <class S>
concept TokenSampler = requires(S& sampler, std::span<const float> values,
                                std::span<const TokenId> text, std::span<float> out) {
  { sampler.next(values, text) } -> std::convertible_to<TokenId>;
  { sampler.greedy() } -> std::convertible_to<bool>;
  sampler.probabilities(values, text, out);
  { sampler.sample(values) } -> std::convertible_to<TokenId>;
  { sampler.uniform() } -> std::convertible_to<double>;
};

/// Options of generating a text.
struct GenerationOptions {
  Index max_tokens = 128;
  bool stop_at_eos = true;  ///< at ModelConfig::eos_token_ids

  /// Multi-token prediction drafts tokens ahead, and one forward pass of all of them verifies them
  /// (Leviathan et al. 2023). Greedy text is the same to the token, sampled text is distributed the
  /// same. Models without the module refuse.
  bool speculative = false;
  /// Drafts at a time, from 1 to kMostDrafts. The module makes those after the first of its own
  /// state, so that each is right less often than the one before.
  Index draft_tokens = 1;
  static constexpr Index kMostDrafts = 64;
  /// Above 0: drafts are what followed the last tokens of the text where they occurred before, at
  /// least so many of them (DraftLookup). Any model can do so. With `speculative` the module drafts
  /// where nothing is found.
  Index lookup = 0;

  /// Where given, each token sees the first and the last tokens only, so that the text can go on
  /// for ever in constant memory; the state forgets the others. See SlidingWindow.
  SlidingWindow window = {};

  AttentionForm prefill_mode = AttentionForm::automatic;
  /// absorbed or decompressed; automatic is absorbed here: a mode that changed between one token
  /// and two would change the last bits of logits.
  AttentionForm decode_mode = AttentionForm::absorbed;
  Index chunk_tokens = 256;  ///< of the prompt at a time

  /// Called with every token as soon as it is certain; false ends the text after it.
  std::function<bool(TokenId)> on_token = nullptr;
  /// Called with the tokens of the prompt that are done, of all; false ends the call.
  std::function<bool(Index done, Index all)> on_prefill = nullptr;
};

/// One text of a call of generate(): its state, what to continue it by, and how to choose tokens.
template <TokenSampler S>
struct GenerationTask {
  DecoderState* state = nullptr;
  std::span<const TokenId> prompt = {};
  S* sampler = nullptr;  ///< its own: a sampler keeps count of what it drew
  GenerationOptions options = {};
  /// Tokens that the state has already, where they are known: drafts are looked up there, too.
  std::span<const TokenId> history = {};
};

/// Why a text ended.
enum class StopReason {
  end_of_text,   ///< the model chose a token of eos_token_ids, which is not passed on
  max_tokens,    ///< as many as were asked for
  context_full,  ///< max_position_embeddings, without a window
  cancelled,     ///< a callback said so
};

constexpr std::string_view name_of(StopReason reason) noexcept {
  constexpr std::string_view kNames[] = {"end_of_text", "max_tokens", "context_full", "cancelled"};
  return kNames[static_cast<int>(reason)];
}

struct GenerationResult {
  StopReason stop = StopReason::max_tokens;
  Index prompt_tokens = 0;
  Index generated_tokens = 0;
  Index drafted_tokens = 0;   ///< by multi-token prediction or out of the text
  Index accepted_tokens = 0;  ///< of those
  Index decode_calls = 0;     ///< forward passes after the prompt
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;  ///< from the end of the prompt on

  /// The part of drafts that were right; 0 without any.
  double acceptance() const noexcept {
    return drafted_tokens > 0
               ? static_cast<double>(accepted_tokens) / static_cast<double>(drafted_tokens)
               : 0.0;
  }
};

}  // namespace mla

#endif  // MLA_MODEL_GENERATION_OPTIONS_HPP_
