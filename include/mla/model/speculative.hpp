#ifndef MLA_MODEL_SPECULATIVE_HPP_
#define MLA_MODEL_SPECULATIVE_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"

// The rule of speculative sampling (Leviathan et al. 2023; Chen et al. 2023). A draft from
// distribution q is kept with probability min(1, p / q); in place of one that is not, a token is
// drawn from the residual max(p - q, 0). The token that comes out is distributed by p, whatever q
// is. Where p is all on one token (greedy) it is that token. A draft that was not drawn but is
// given is from a q that is all on it.

namespace mla {

/// Whether to keep `draft`, drawn from q [vocab_size], where p [vocab_size] is wanted. `uniform` is
/// a random number in [0, 1).
inline bool accept_draft(std::span<const float> p, std::span<const float> q, TokenId draft,
                         double uniform) noexcept {
  const auto i = static_cast<std::size_t>(draft);
  return uniform * static_cast<double>(q[i]) < static_cast<double>(p[i]);
}
/// The same of a draft that was not drawn.
inline bool accept_draft(std::span<const float> p, TokenId draft, double uniform) noexcept {
  return uniform < static_cast<double>(p[static_cast<std::size_t>(draft)]);
}

/// Makes p [vocab_size] the weights to draw by when a draft from q was not kept: max(p - q, 0),
/// which do not sum to 1. Where rounding leaves nothing of them, p stays as it is.
inline void take_residual(std::span<float> p, std::span<const float> q) noexcept {
  bool any = false;
  for (std::size_t i = 0; i < p.size(); ++i) any |= p[i] > q[i];
  if (!any) return;
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = std::max(p[i] - q[i], 0.0f);
}
/// The same of a draft that was not drawn.
inline void take_residual(std::span<float> p, TokenId draft) noexcept {
  float& kept = p[static_cast<std::size_t>(draft)];
  const float before = kept;
  kept = 0.0f;
  if (std::ranges::none_of(p, [](float weight) { return weight > 0.0f; })) kept = before;
}

}  // namespace mla

#endif  // MLA_MODEL_SPECULATIVE_HPP_
