#ifndef MLA_SERVER_TESTS_SERVER_FIXTURE_HPP_
#define MLA_SERVER_TESTS_SERVER_FIXTURE_HPP_

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "mla/core/executor.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"
#include "model/trained_decoder.hpp"

#include "completion.hpp"
#include "scheduler.hpp"

// What the tests of the server share: a scheduler over the trained model that can be held up, and
// what its texts must be.

namespace mla::test {

using server::Clock;
using server::Completion;
using server::Prompt;
using server::Scheduler;
using server::SchedulerOptions;

inline const Tokenizer& trained_tokenizer() {
  static const Tokenizer tokenizer(kModel);
  return tokenizer;
}

/// Runs tasks on the calling thread, while the gate is open.
class GateExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 2; }
  void set_open(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  /// Waits until somebody stands at the closed gate.
  void wait_for_arrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return arrived_ > 0; });
  }

 private:
  void run(Index tasks, const Body& body) override {
    {
      std::unique_lock lock(mutex_);
      ++arrived_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return open_; });
      --arrived_;
    }
    for (Index task = 0; task < tasks; ++task) body(task, 0);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int arrived_ = 0;
};

/// Waits, without a limit of its own, until `holds()`.
inline void wait_until(const std::function<bool()>& holds) {
  while (!holds()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

/// What a prompt's choice must be: generate() alone, with its stop strings cut off.
struct ExpectedText {
  std::vector<TokenId> tokens;
  std::string text;
  std::string finish;
};

inline ExpectedText expected_text(const Prompt& prompt, Index choice,
                                  const SchedulerOptions& options) {
  ExpectedText expected;
  Context context;
  DecoderState state(trained_model().config(), options.cache);
  SamplerOptions sampling = prompt.sampling;
  sampling.seed += static_cast<std::uint64_t>(choice);
  Sampler sampler(trained_model().vocab_size(), sampling);
  GenerationOptions generation;
  generation.max_tokens = prompt.max_tokens;
  generation.stop_at_eos = !prompt.ignore_eos;
  generation.chunk_tokens = options.chunk_tokens;
  generation.lookup = options.lookup;
  generation.draft_tokens = options.draft_tokens;
  generation.prefill_mode = generation.decode_mode = options.mode;
  generation.on_token = [&](TokenId token) {
    expected.tokens.push_back(token);
    return true;
  };
  const GenerationResult result =
      generate(trained_model(), state, std::span<const TokenId>(prompt.tokens), sampler, context,
               generation);
  expected.finish = result.stop == StopReason::end_of_text ? "stop" : "length";
  expected.text = trained_tokenizer().decode(expected.tokens);
  std::size_t end = expected.text.npos;
  for (const std::string& stop : prompt.stop) end = std::min(end, expected.text.find(stop));
  if (end == expected.text.npos) return expected;
  expected.text.resize(end);
  expected.finish = "stop";
  return expected;
}

inline Prompt prompt_of(const std::string& text, Index max_tokens, double temperature = 0.0) {
  Prompt prompt;
  prompt.tokens = trained_tokenizer().encode(text);
  prompt.max_tokens = max_tokens;
  prompt.sampling.temperature = temperature;
  return prompt;
}

}  // namespace mla::test

#endif  // MLA_SERVER_TESTS_SERVER_FIXTURE_HPP_
