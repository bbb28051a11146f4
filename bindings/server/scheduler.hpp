#ifndef MLA_SERVER_SCHEDULER_HPP_
#define MLA_SERVER_SCHEDULER_HPP_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "mla/attention/cost_model.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/prefix_cache.hpp"
#include "mla/model/sampler.hpp"
#include "mla/ops/context.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"

#include "completion.hpp"
#include "statistics.hpp"
#include "stop_strings.hpp"

namespace mla::server {

struct SchedulerOptions {
  Index max_choices = 16;    ///< generated at the same time
  Index max_waiting = 64;    ///< prompts in the queue
  Index chunk_tokens = 256;  ///< of prompts in a round, which is how long others wait for them
  CacheFormat cache = CacheFormat::float32;
  std::size_t prefix_cache_bytes = 0;  ///< for prompts that begin alike; 0: none are kept
  AttentionForm mode = AttentionForm::automatic;  ///< as prefill_mode and decode_mode of generate()
  Index lookup = 0;                               ///< as GenerationOptions::lookup; 0: no drafts
  Index draft_tokens = 4;  ///< as GenerationOptions::draft_tokens, where there are drafts
};

/// Generates all texts of a server, on one thread. Each round is one pass through the model for all
/// of them: a token for each choice that is being written, and a chunk of the prompts that are
/// being read. Prompts join between rounds, in the order of their arrival, and leave when they are
/// done or nobody waits for them.
///
/// Every text is the one that generate() gives alone with the same chunk_tokens and drafts,
/// whatever else is running; greedy ones are the same without drafts.
class Scheduler {
 public:
  /// All must outlive the scheduler, whose thread alone uses `context`.
  Scheduler(const DecoderModel& model, const Tokenizer& tokenizer, Context& context,
            const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  ~Scheduler();

  /// Puts a prompt into the queue. Throws ApiError: 400 for one that this model cannot continue,
  /// 429 when the queue is full, 503 after stop().
  std::shared_ptr<Completion> submit(Prompt prompt, Clock::time_point deadline);

  /// Ends what is running, and refuses what comes.
  void stop();

  Statistics statistics() const;
  const SchedulerOptions& options() const noexcept { return options_; }

 private:
  struct Choice;
  struct Running;

  void run();
  bool admit(std::unique_lock<std::mutex>& lock);
  void drop_waiting();
  DecoderState begun_state(const Prompt& prompt);
  void keep_prefix(const Running& running);
  void drop_ended();
  void round();
  Index plan_round();
  void begin_choices(Running& running, std::span<const float> logits);
  void take_logits(Running& running, std::size_t choice);
  void take_token(Running& running, Choice& choice, TokenId token, std::span<const float> logits);
  std::span<const float> logits_row(Index row) const;
  void fail_all(const ApiError& error);
  void count_caches();
  template <class Count>
  void count(const Count& count);

  const DecoderModel& model_;
  const Tokenizer& tokenizer_;
  Context& context_;
  SchedulerOptions options_;

  // Of the thread.
  std::list<Running> running_;
  Index running_choices_ = 0;
  Clock::time_point next_count_;  // of caches
  RowMajorMatrix logits_;         // [max_choices * (1 + drafts), vocab_size]
  std::vector<TextStep> steps_;
  std::optional<PrefixCache> prefixes_;

  mutable std::mutex mutex_;  // for what follows
  std::condition_variable changed_;
  struct Waiting {
    std::shared_ptr<Completion> completion;
    Clock::time_point since;
  };
  std::deque<Waiting> waiting_;
  Statistics statistics_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace mla::server

#endif  // MLA_SERVER_SCHEDULER_HPP_
