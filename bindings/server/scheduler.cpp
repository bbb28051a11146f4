#include "scheduler.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/model/draft_lookup.hpp"
#include "mla/model/generation_options.hpp"

#include "running.hpp"

namespace mla::server {
namespace {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Scheduler::Scheduler(const DecoderModel& model, const Tokenizer& tokenizer, Context& context,
                     const SchedulerOptions& options)
    : model_(model), tokenizer_(tokenizer), context_(context), options_(options) {
  require(options.max_choices >= 1, "max_choices must be at least 1, got ", options.max_choices);
  require(options.max_waiting >= 1, "max_waiting must be at least 1, got ", options.max_waiting);
  require(options.chunk_tokens >= 1, "chunk_tokens must be at least 1, got ", options.chunk_tokens);
  require(options.lookup >= 0 && options.lookup <= DraftLookup::kLongestMatch,
          "lookup must be from 0 to ", DraftLookup::kLongestMatch, ", got ", options.lookup);
  require(options.draft_tokens >= 1 && options.draft_tokens <= GenerationOptions::kMostDrafts,
          "draft_tokens must be from 1 to ", GenerationOptions::kMostDrafts, ", got ",
          options.draft_tokens);
  if (options.prefix_cache_bytes > 0)
    prefixes_.emplace(model.config(), options.cache, options.prefix_cache_bytes);
  logits_.resize(options.max_choices * (options.lookup > 0 ? 1 + options.draft_tokens : 1),
                 model.vocab_size());
  thread_ = std::thread([this] { run(); });
}

Scheduler::~Scheduler() {
  stop();
  thread_.join();
}

std::shared_ptr<Completion> Scheduler::submit(Prompt prompt, Clock::time_point deadline) {
  const Index tokens = std::ssize(prompt.tokens), most = model_.max_position_embeddings();
  if (tokens == 0) refuse("prompt", "the prompt is empty");
  if (tokens >= most)
    throw ApiError(
        400, "invalid_request_error",
        mla::detail::message_of(
            {"the prompt has ", tokens, " tokens, which leaves no room in a context of ", most}),
        "prompt", "context_length_exceeded");
  for (const TokenId token : prompt.tokens)
    if (token < 0 || token >= model_.vocab_size())
      refuse("prompt", "token ", token, " is not in the vocabulary of ", model_.vocab_size());
  if (prompt.choices < 1 || prompt.choices > options_.max_choices)
    refuse("n", "n must be from 1 to ", options_.max_choices, ", got ", prompt.choices);
  if (prompt.max_tokens < 1)
    refuse("max_tokens", "max_tokens must be at least 1, got ", prompt.max_tokens);
  prompt.max_tokens = std::min(prompt.max_tokens, most - tokens);
  prompt.sampling.validate();
  auto completion = std::make_shared<Completion>(std::move(prompt), deadline);

  const std::lock_guard lock(mutex_);
  if (stopping_) throw ApiError(503, "server_error", "the server is shutting down");
  if (std::ssize(waiting_) >= options_.max_waiting) drop_waiting();
  if (std::ssize(waiting_) >= options_.max_waiting) {
    ++statistics_.prompts_refused;
    throw ApiError(
        429, "rate_limit_error",
        mla::detail::message_of({"the queue is full: ", waiting_.size(), " prompts are waiting"}),
        {}, "queue_full");
  }
  waiting_.push_back({completion, Clock::now()});
  ++statistics_.prompts_accepted;
  changed_.notify_one();
  return completion;
}

void Scheduler::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_one();
}

Statistics Scheduler::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics statistics = statistics_;
  statistics.waiting_prompts = waiting_.size();
  return statistics;
}

template <class Count>
void Scheduler::count(const Count& count) {
  const std::lock_guard lock(mutex_);
  count(statistics_);
}

void Scheduler::run() {
  std::unique_lock lock(mutex_);
  while (admit(lock)) {
    lock.unlock();
    if (!running_.empty()) round();
    drop_ended();
    count_caches();
    lock.lock();
  }
  const ApiError error(503, "server_error", "the server is shutting down");
  for (const Waiting& waiting : waiting_) waiting.completion->fail(error);
  waiting_.clear();
  lock.unlock();
  fail_all(error);
}

// Takes what is cancelled or late out of the queue.
void Scheduler::drop_waiting() {
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    const bool late = Clock::now() >= waiting.completion->deadline();
    if (late) waiting.completion->fail(time_limit_error());
    statistics_.prompts_failed += late;
    statistics_.prompts_cancelled += !late && waiting.completion->cancelled();
    return late || waiting.completion->cancelled();
  });
}

// Waits until there is something to do, and takes from the queue what there is room for. False: the
// end.
bool Scheduler::admit(std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [this] { return stopping_ || !waiting_.empty() || !running_.empty(); });
  if (stopping_) return false;
  drop_waiting();
  while (!waiting_.empty()) {
    const Waiting next = waiting_.front();
    const Prompt& prompt = next.completion->prompt();
    if (running_choices_ + prompt.choices > options_.max_choices) break;
    waiting_.pop_front();
    try {
      std::list<Running> begun(1);
      Running& running = begun.front();
      running.completion = next.completion;
      running.since = next.since;
      running.states.reserve(static_cast<std::size_t>(prompt.choices));
      running.states.push_back(begun_state(prompt));
      running.prompted = running.states.front().size();
      running.completion->set_cached_tokens(running.prompted);
      statistics_.cached_tokens += static_cast<std::uint64_t>(running.prompted);
      for (Index i = 0; i < prompt.choices; ++i)
        running.choices.emplace_back(i, prompt, model_.vocab_size(), tokenizer_, options_);
      running_.splice(running_.end(), begun);
      running_choices_ += prompt.choices;
      statistics_.running_choices = static_cast<std::uint64_t>(running_choices_);
    } catch (const std::bad_alloc&) {
      ++statistics_.prompts_failed;
      next.completion->fail({503, "server_error", "not enough memory"});
    }
  }
  return true;
}

// A state with the chunks of a prompt that are known, but not the last one. Only whole chunks: they
// have the bits that they would have here.
DecoderState Scheduler::begun_state(const Prompt& prompt) {
  if (!prefixes_) return DecoderState(model_.config(), options_.cache);
  DecoderState state = prefixes_->longest(prompt.tokens);
  state.truncate(state.size() / options_.chunk_tokens * options_.chunk_tokens);
  return state;
}

// Keeps the whole chunks of a prompt for others that begin alike.
void Scheduler::keep_prefix(const Running& running) {
  if (!prefixes_) return;
  const Index whole = running.prompt_size() / options_.chunk_tokens * options_.chunk_tokens;
  prefixes_->insert(std::span(running.prompt().tokens).first(static_cast<std::size_t>(whole)),
                    running.states.front());
  const std::uint64_t bytes = prefixes_->bytes();
  count([&](Statistics& statistics) { statistics.prefix_cache_bytes = bytes; });
}

// Takes out what is done, cancelled or late.
void Scheduler::drop_ended() {
  std::vector<std::uint64_t Statistics::*> outcomes;
  for (Running& running : running_) {
    Completion& completion = *running.completion;
    if (!running.outcome && completion.cancelled()) {
      running.outcome = &Statistics::prompts_cancelled;
    } else if (!running.outcome && Clock::now() >= completion.deadline()) {
      completion.fail(time_limit_error());
      running.outcome = &Statistics::prompts_failed;
    }
    if (!running.outcome) continue;
    running_choices_ -= completion.prompt().choices;
    outcomes.push_back(running.outcome);
  }
  std::erase_if(running_, [](const Running& running) { return running.outcome != nullptr; });
  count([&](Statistics& statistics) {
    for (const auto outcome : outcomes) ++(statistics.*outcome);
    statistics.running_choices = static_cast<std::uint64_t>(running_choices_);
    if (running_.empty())
      statistics.cache_tokens = statistics.cache_bytes = statistics.multi_head_bytes = 0;
  });
}

// Collects steps_. Returns the tokens of the round.
Index Scheduler::plan_round() {
  const AttentionForm decode_mode =
      options_.mode == AttentionForm::automatic ? AttentionForm::absorbed : options_.mode;
  steps_.clear();
  Index tokens = 0, prompt_tokens = 0, row = 0;
  for (Running& running : running_) {
    running.chunk = 0;
    if (running.reading()) {
      // Chunks are those of the prompt alone: only then the bits are.
      const Index chunk = running.next_chunk(options_.chunk_tokens);
      if (prompt_tokens > 0 && prompt_tokens + chunk > options_.chunk_tokens) continue;
      const bool last = running.prompted + chunk == running.prompt_size();
      steps_.push_back({&running.states.front(),
                        std::span(running.prompt().tokens)
                            .subspan(static_cast<std::size_t>(running.prompted),
                                     static_cast<std::size_t>(chunk)),
                        last ? 1 : 0, options_.mode});
      running.chunk = chunk;
      running.choices.front().row = last ? row : -1;
      row += last;
      prompt_tokens += chunk;
      tokens += chunk;
      continue;
    }
    for (std::size_t i = 0; i < running.choices.size(); ++i) {
      Choice& choice = running.choices[i];
      if (choice.done) continue;
      const std::span<const TokenId> next = choice.next(options_.draft_tokens);
      steps_.push_back({&running.states[i], next, std::ssize(next), decode_mode});
      choice.row = row;
      row += std::ssize(next);
      tokens += std::ssize(next);
    }
  }
  count([&](Statistics& statistics) {
    ++statistics.rounds;
    statistics.prompt_tokens += static_cast<std::uint64_t>(prompt_tokens);
  });
  return tokens;
}

std::span<const float> Scheduler::logits_row(Index row) const {
  return {logits_.row(row).data(), static_cast<std::size_t>(logits_.cols())};
}

void Scheduler::round() {
  const Clock::time_point start = Clock::now();
  try {
    const Index tokens = plan_round();
    Index rows = 0;
    for (const TextStep& step : steps_) rows += step.wanted;
    model_.forward(steps_, logits_.topRows(rows), context_, {.chunk_tokens = tokens});
  } catch (const std::exception& error) {
    fail_all({500, "server_error", error.what()});
    return;
  }
  for (Running& running : running_) {
    try {
      if (running.reading()) {
        running.prompted += running.chunk;
        if (!running.reading()) begin_choices(running, logits_row(running.choices.front().row));
      } else {
        for (std::size_t i = 0; i < running.choices.size(); ++i)
          if (!running.choices[i].done) take_logits(running, i);
      }
    } catch (const std::exception& error) {  // logits that are not finite, no memory
      running.completion->fail({500, "server_error", error.what()});
      running.outcome = &Statistics::prompts_failed;
    }
    // Now, not in the next round: a client that has all its pieces may be gone by then.
    if (!running.outcome && std::ranges::all_of(running.choices, &Choice::done))
      running.outcome = &Statistics::prompts_finished;
  }
  count([&](Statistics& statistics) { statistics.busy_seconds += seconds_since(start); });
}

// A prompt is read to its end: all choices begin with the same logits.
void Scheduler::begin_choices(Running& running, std::span<const float> logits) {
  count([&](Statistics& statistics) { statistics.first_token.add(seconds_since(running.since)); });
  keep_prefix(running);
  for (std::size_t i = 1; i < running.choices.size(); ++i)
    running.states.push_back(running.states.front().fork(running.prompt_size()));
  for (Choice& choice : running.choices)
    take_token(running, choice, choice.sampler.next(logits, choice.text), logits);
}

// Takes those drafts of a choice that are right, and a token more.
void Scheduler::take_logits(Running& running, std::size_t number) {
  Choice& choice = running.choices[number];
  const Index drafts = choice.drafts.count();
  Index accepted = 0;
  for (bool right = true; right && !choice.done;) {
    const std::span<const float> logits = logits_row(choice.row + accepted);
    const TokenId token = accepted == drafts
                              ? choice.sampler.next(logits, choice.text)
                              : choice.drafts.verify(choice.sampler, accepted, logits, choice.text);
    right =
        accepted < drafts && token == choice.drafts.tokens()[static_cast<std::size_t>(accepted)];
    accepted += right;
    take_token(running, choice, token, logits);
  }
  running.states[number].truncate_layers(std::ssize(choice.text) - 1);
  if (drafts == 0) return;
  count([&](Statistics& statistics) {
    statistics.drafted_tokens += static_cast<std::uint64_t>(drafts);
    statistics.accepted_tokens += static_cast<std::uint64_t>(accepted);
  });
}

// Passes on what a choice's next token makes certain.
void Scheduler::take_token(Running& running, Choice& choice, TokenId token,
                           std::span<const float> logits) {
  const Prompt& prompt = running.prompt();
  Piece piece;
  piece.choice = choice.number;
  const auto& eos = model_.config().eos_token_ids;
  if (!prompt.ignore_eos && std::ranges::find(eos, token) != eos.end()) {
    piece.finish = FinishReason::stop;  // the token is no part of the text
  } else {
    if (prompt.top_logprobs)
      piece.reports.push_back(report_of(logits, token, *prompt.top_logprobs));
    choice.append(token);
    running.completion->count_token();
    count([](Statistics& statistics) { ++statistics.generated_tokens; });
    // A model may have rows for tokens that the tokenizer does not have.
    if (token < tokenizer_.vocab_size()) piece.text = choice.stops.push(choice.decoder.push(token));
    if (choice.stops.stopped())
      piece.finish = FinishReason::stop;
    else if (std::ssize(choice.text) == running.prompt_size() + prompt.max_tokens)
      piece.finish = FinishReason::length;
  }
  if (piece.finish && !choice.stops.stopped())
    piece.text += choice.stops.push(choice.decoder.finish()) + choice.stops.finish();
  choice.done = piece.finish.has_value();
  if (!piece.text.empty() || !piece.reports.empty() || piece.finish)
    running.completion->push(std::move(piece));
}

void Scheduler::fail_all(const ApiError& error) {
  for (const Running& running : running_) running.completion->fail(error);
  const std::uint64_t failed = running_.size();
  running_.clear();
  running_choices_ = 0;
  count([&](Statistics& statistics) { statistics.prompts_failed += failed; });
}

void Scheduler::count_caches() {
  const AttentionConfig& config = model_.config().attention;
  const Index head_bytes =
      row_layout(options_.cache, config.qk_head_dim() + config.v_head_dim, 0).bytes;
  // Pages that states share are found by looking at all of them: not between any two tokens.
  constexpr std::chrono::milliseconds kPause{100};
  if (running_.empty() || Clock::now() < next_count_) return;
  next_count_ = Clock::now() + kPause;
  std::uint64_t tokens = 0, multi_head_bytes = 0;
  std::vector<const DecoderState*> states;
  for (const Running& running : running_)
    for (const DecoderState& state : running.states) {
      const Index rows = state.size() * state.layers() * config.num_attention_heads;
      tokens += static_cast<std::uint64_t>(state.size());
      states.push_back(&state);
      multi_head_bytes += static_cast<std::uint64_t>(rows * head_bytes);
    }
  const std::uint64_t cache_bytes = bytes_used(states);
  count([&](Statistics& statistics) {
    statistics.cache_tokens = tokens;
    statistics.cache_bytes = cache_bytes;
    statistics.multi_head_bytes = multi_head_bytes;
  });
}

}  // namespace mla::server
