#ifndef MLA_EXAMPLES_PROGRAMS_STATISTICS_HPP_
#define MLA_EXAMPLES_PROGRAMS_STATISTICS_HPP_

#include <cstdio>
#include <string>

#include "mla/core/attention_config.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generation_options.hpp"

namespace mla::programs {

/// If every head's key and value of the same tokens were cached.
inline double multi_head_bytes(const DecoderState& state, const AttentionConfig& config) {
  const Index predicted = state.prediction() ? state.prediction()->size() : 0;
  const Index head = config.qk_head_dim() + config.v_head_dim;
  return static_cast<double>((state.layers() * state.size() + predicted) *
                             config.num_attention_heads *
                             row_layout(state.format(), head, 0).bytes);
}

/// Speeds, cache and drafts of a text, on standard error.
inline void print_statistics(const GenerationResult& result, const DecoderState& state,
                             const AttentionConfig& config) {
  const auto per_second = [](Index tokens, double seconds) {
    return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const auto print = [&](const char* name, Index tokens, double seconds) {
    std::fprintf(stderr, "%s %6td tokens  %9.1f ms  %9.1f tokens/s\n", name, tokens, 1e3 * seconds,
                 per_second(tokens, seconds));
  };
  print("prefill", result.prompt_tokens, result.prefill_seconds);
  print("decode ", result.generated_tokens, result.decode_seconds);
  const double latent = static_cast<double>(state.bytes_used());
  const double multi_head = multi_head_bytes(state, config);
  std::fprintf(stderr, "cache   %6td tokens  MLA %.0f bytes  MHA %.0f bytes  %.1f times, %s\n",
               state.size(), latent, multi_head, latent > 0.0 ? multi_head / latent : 0.0,
               std::string(name_of(state.format())).c_str());
  if (result.drafted_tokens > 0)
    std::fprintf(stderr, "drafts  %6td tokens  %td accepted, %.1f %%, %.2f tokens per call\n",
                 result.drafted_tokens, result.accepted_tokens, 100.0 * result.acceptance(),
                 result.decode_calls > 0 ? static_cast<double>(result.generated_tokens) /
                                               static_cast<double>(result.decode_calls)
                                         : 0.0);
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_STATISTICS_HPP_
