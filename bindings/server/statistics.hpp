#ifndef MLA_SERVER_STATISTICS_HPP_
#define MLA_SERVER_STATISTICS_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace mla::server {

/// Counts durations by upper bounds, as Prometheus has histograms.
struct Histogram {
  static constexpr double kBounds[] = {0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0};

  std::array<std::uint64_t, std::size(kBounds)> at_most = {};  ///< [bound] durations, cumulative
  std::uint64_t count = 0;
  double sum = 0.0;  ///< seconds

  void add(double seconds) noexcept {
    for (std::size_t i = 0; i < at_most.size(); ++i) at_most[i] += seconds <= kBounds[i];
    ++count;
    sum += seconds;
  }
};

/// What a scheduler has done since it began, and what it is at.
struct Statistics {
  std::uint64_t prompts_accepted = 0;
  std::uint64_t prompts_refused = 0;    ///< the queue was full
  std::uint64_t prompts_cancelled = 0;  ///< the client was gone
  std::uint64_t prompts_failed = 0;     ///< time limit, memory
  std::uint64_t prompts_finished = 0;
  std::uint64_t prompt_tokens = 0;     ///< computed
  std::uint64_t cached_tokens = 0;     ///< of prompts, not computed again
  std::uint64_t generated_tokens = 0;  ///< of all choices
  std::uint64_t drafted_tokens = 0;    ///< by looking up
  std::uint64_t accepted_tokens = 0;   ///< of these
  std::uint64_t rounds = 0;            ///< passes through the model
  double busy_seconds = 0.0;           ///< in these
  Histogram first_token;               ///< seconds from a prompt's arrival to its first token

  // Now.
  std::uint64_t waiting_prompts = 0;
  std::uint64_t running_choices = 0;
  std::uint64_t cache_tokens = 0;
  std::uint64_t cache_bytes = 0;
  std::uint64_t prefix_cache_bytes = 0;  ///< of pages that are kept for prompts that begin alike
  std::uint64_t multi_head_bytes = 0;    ///< the same tokens with every head's key and value cached
};

}  // namespace mla::server

#endif  // MLA_SERVER_STATISTICS_HPP_
