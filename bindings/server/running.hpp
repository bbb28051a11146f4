#ifndef MLA_SERVER_RUNNING_HPP_
#define MLA_SERVER_RUNNING_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/draft_lookup.hpp"
#include "mla/model/drafts.hpp"
#include "mla/model/sampler.hpp"
#include "mla/text/streaming_decoder.hpp"

#include "completion.hpp"
#include "scheduler.hpp"
#include "statistics.hpp"
#include "stop_strings.hpp"

// What the scheduler keeps of a prompt that it is at.

namespace mla::server {

/// The chosen token and the most likely ones, by the softmax of `logits`, in double.
inline TokenReport report_of(std::span<const float> logits, TokenId chosen, Index top) {
  const double largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double all = largest + std::log(sum);
  const auto logprob = [&](TokenId token) {
    return static_cast<double>(logits[static_cast<std::size_t>(token)]) - all;
  };
  TokenReport report = {{chosen, logprob(chosen)}, {}};
  std::vector<TokenId> best(static_cast<std::size_t>(std::min<Index>(top, std::ssize(logits))));
  std::vector<TokenId> ids(logits.size());
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  std::ranges::partial_sort_copy(ids, best, [&](TokenId a, TokenId b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (const TokenId token : best) report.top.push_back({token, logprob(token)});
  return report;
}

/// One continuation of a prompt.
struct Scheduler::Choice {
  Choice(Index choice_number, const Prompt& prompt, Index vocab_size, const Tokenizer& tokenizer,
         const SchedulerOptions& options)
      : number(choice_number),
        sampler(vocab_size, seeded(prompt.sampling, choice_number)),
        text(prompt.tokens),
        decoder(tokenizer),
        stops(prompt.stop),
        drafts(options.lookup > 0 ? options.draft_tokens : 0, vocab_size, false),
        left(prompt.max_tokens) {
    text.reserve(text.size() + static_cast<std::size_t>(prompt.max_tokens));
    if (options.lookup == 0) return;
    lookup.emplace(options.lookup);
    lookup->reserve(std::ssize(prompt.tokens) + prompt.max_tokens);
    lookup->append(prompt.tokens);
  }

  // What goes through the model next: the last token and its drafts. A text that has room for n
  // tokens has use for n - 1 drafts.
  std::span<const TokenId> next(Index draft_tokens) {
    if (lookup) drafts.look_up(*lookup, std::min(draft_tokens, left - 1));
    return drafts.after(text.back());
  }
  void append(TokenId token) {
    text.push_back(token);
    --left;
    if (lookup) lookup->append(std::span(&token, 1));
  }

  static SamplerOptions seeded(SamplerOptions options, Index choice) {
    options.seed += static_cast<std::uint64_t>(choice);
    return options;
  }

  Index number;
  Sampler sampler;
  std::vector<TokenId> text;  // prompt and what was generated
  StreamingDecoder decoder;
  StopStrings stops;
  mla::detail::Drafts<Sampler> drafts;
  std::optional<DraftLookup> lookup;  // where there are drafts
  Index left;                         // of max_tokens
  Index row = -1;                     // of the first logits of this round
  bool done = false;
};

/// A prompt that is being read or continued.
struct Scheduler::Running {
  std::shared_ptr<Completion> completion;
  Clock::time_point since;
  std::vector<Choice> choices;
  std::vector<DecoderState> states;  // one while the prompt is read, then one per choice
  Index prompted = 0;                // tokens of the prompt that are read
  Index chunk = 0;                   // of these in this round
  std::uint64_t Statistics::*outcome = nullptr;  // what it counts as, once it is over

  const Prompt& prompt() const noexcept { return completion->prompt(); }
  Index prompt_size() const noexcept { return std::ssize(prompt().tokens); }
  bool reading() const noexcept { return prompted < prompt_size(); }
  Index next_chunk(Index chunk_tokens) const noexcept {
    return std::min(chunk_tokens, prompt_size() - prompted);
  }
};

}  // namespace mla::server

#endif  // MLA_SERVER_RUNNING_HPP_
