#ifndef MLA_ATTENTION_TOKEN_POSITIONS_HPP_
#define MLA_ATTENTION_TOKEN_POSITIONS_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Largest position id: the angle of a rotation, in double, is exact to 1e-3 radians there.
inline constexpr Index kMaxPosition = Index{1} << 40;

/// Throws std::invalid_argument unless `position`, of token i of sequence s of a call, can follow
/// `last`.
inline void require_next_position(Index position, Index last, Index i, std::size_t s = 0) {
  if (position > last && position >= 0 && position <= kMaxPosition) [[likely]]
    return;
  const auto fail = [&](const char* must, const auto&... parts) {
    throw_invalid("position_ids must ", must, ": token ", i, " of sequence ", s, " has position ",
                  position, parts...);
  };
  if (position < 0) fail("not be negative");
  if (position <= last) fail("rise", " after ", last);
  fail("be at most 2^40");
}

/// The positions of the tokens of a cache, which rise.
class TokenPositions {
 public:
  std::span<const Index> values() const noexcept { return values_; }
  Index last() const noexcept { return values_.empty() ? -1 : values_.back(); }
  std::size_t bytes_allocated() const noexcept { return values_.capacity() * sizeof(Index); }

  /// Makes room for `tokens` in all, or for `capacity` if it grows.
  void reserve(Index tokens, Index capacity) {
    if (static_cast<std::size_t>(tokens) > values_.capacity())
      values_.reserve(std::max(static_cast<std::size_t>(capacity), 2 * values_.capacity()));
  }
  /// Throws std::invalid_argument unless `positions` can follow these.
  void check(std::span<const Index> positions) const {
    Index before = last();
    for (std::size_t i = 0; i < positions.size(); ++i) {
      require_next_position(positions[i], before, static_cast<Index>(i));
      before = positions[i];
    }
  }
  /// Checked positions, within what was reserved.
  void append(std::span<const Index> positions) {
    values_.insert(values_.end(), positions.begin(), positions.end());
  }
  void truncate(Index tokens) noexcept { values_.resize(static_cast<std::size_t>(tokens)); }
  void shrink_to_fit() { values_.shrink_to_fit(); }

 private:
  std::vector<Index> values_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_TOKEN_POSITIONS_HPP_
