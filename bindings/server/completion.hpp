#ifndef MLA_SERVER_COMPLETION_HPP_
#define MLA_SERVER_COMPLETION_HPP_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/sampler.hpp"

#include "api_error.hpp"

namespace mla::server {

using Clock = std::chrono::steady_clock;

/// One text to continue, perhaps in several ways.
struct Prompt {
  std::vector<TokenId> tokens;  ///< at least one
  Index choices = 1;            ///< continuations; choice i is drawn with seed + i
  SamplerOptions sampling;
  Index max_tokens = 16;
  bool ignore_eos = false;
  std::vector<std::string> stop;      ///< texts that end a continuation, and are no part of it
  std::optional<Index> top_logprobs;  ///< log-probabilities of tokens, and of so many best ones
};

enum class FinishReason {
  stop,    ///< the model ended the text, or a stop string came
  length,  ///< max_tokens, or the context is full
};

constexpr const char* name_of(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
  }
  __builtin_unreachable();
}

/// A token and the logarithm of its probability in the model's own distribution.
struct TokenLogprob {
  TokenId token = 0;
  double logprob = 0.0;
};

/// What is known of a generated token, where the request asks for it.
struct TokenReport {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  ///< the best first
};

/// Something new of a choice.
struct Piece {
  Index choice = 0;
  std::string text;                    ///< whole characters; often none
  std::vector<TokenReport> reports;    ///< of the tokens since the last piece
  std::optional<FinishReason> finish;  ///< the choice's last piece
};

struct Usage {
  Index prompt_tokens = 0;
  Index cached_tokens = 0;  ///< of the prompt, that were not computed again
  Index completion_tokens = 0;
};

/// A prompt on its way: the scheduler's thread writes pieces, a connection's thread takes them. All
/// functions may be called from both.
class Completion {
 public:
  Completion(Prompt prompt, Clock::time_point deadline)
      : prompt_(std::move(prompt)), deadline_(deadline), choices_left_(prompt_.choices) {
    usage_.prompt_tokens = std::ssize(prompt_.tokens);
  }

  const Prompt& prompt() const noexcept { return prompt_; }
  Clock::time_point deadline() const noexcept { return deadline_; }

  void push(Piece piece) {
    const std::lock_guard lock(mutex_);
    if (piece.finish) --choices_left_;
    pieces_.push_back(std::move(piece));
    changed_.notify_one();
  }
  /// The end for all choices.
  void fail(const ApiError& error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
    changed_.notify_one();
  }
  void set_cached_tokens(Index tokens) {
    const std::lock_guard lock(mutex_);
    usage_.cached_tokens = tokens;
  }
  void count_token() {
    const std::lock_guard lock(mutex_);
    ++usage_.completion_tokens;
  }

  /// Nobody waits for the rest.
  void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }

  /// The next piece; nothing when there is none within `patience`, or none is to come (done()).
  /// Throws ApiError where the generation failed, after all pieces.
  std::optional<Piece> next(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience,
                      [this] { return !pieces_.empty() || error_ || choices_left_ == 0; });
    if (pieces_.empty()) {
      if (error_) throw ApiError(*error_);
      return std::nullopt;
    }
    Piece piece = std::move(pieces_.front());
    pieces_.pop_front();
    return piece;
  }
  /// Whether all pieces of all choices were taken.
  bool done() const {
    const std::lock_guard lock(mutex_);
    return pieces_.empty() && choices_left_ == 0;
  }
  Usage usage() const {
    const std::lock_guard lock(mutex_);
    return usage_;
  }

 private:
  const Prompt prompt_;
  const Clock::time_point deadline_;
  std::atomic<bool> cancelled_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  std::optional<ApiError> error_;
  Index choices_left_;  // that have not pushed their last piece
  Usage usage_;
};

}  // namespace mla::server

#endif  // MLA_SERVER_COMPLETION_HPP_
