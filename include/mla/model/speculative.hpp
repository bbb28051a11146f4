#ifndef MLA_MODEL_SPECULATIVE_HPP_
#define MLA_MODEL_SPECULATIVE_HPP_

#include <algorithm>
#include <span>

#include "mla/core/tensor.hpp"
#include "mla/model/model_config.hpp"

// The rule of speculative sampling (Leviathan et al. 2023; Chen et al. 2023). A draft from
// distribution q is kept with probability min(1, p / q); in place of one that is not, a token is
// drawn from the residual max(p - q, 0). The token that comes out is distributed by p, whatever q
// is. Where p is all on one token (greedy) it is that token.

namespace mla {

/// Whether to keep `draft`, drawn from q [vocab_size], where p [vocab_size] is wanted. `uniform` is
/// a random number in [0, 1).
inline bool accept_draft(std::span<const float> p, std::span<const float> q, TokenId draft,
                         double uniform) noexcept {
  const auto i = static_cast<std::size_t>(draft);
  return uniform * static_cast<double>(q[i]) < static_cast<double>(p[i]);
}

/// Makes p [vocab_size] the distribution to draw from when a draft from q was not kept: max(p - q,
/// 0), normalised. Where rounding leaves nothing of it, p stays as it is.
inline void take_residual(std::span<float> p, std::span<const float> q) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < p.size(); ++i)
    sum += static_cast<double>(std::max(p[i] - q[i], 0.0f));
  if (!(sum > 0.0)) return;
  for (std::size_t i = 0; i < p.size(); ++i)
    p[i] = static_cast<float>(static_cast<double>(std::max(p[i] - q[i], 0.0f)) / sum);
}

}  // namespace mla

#endif  // MLA_MODEL_SPECULATIVE_HPP_
