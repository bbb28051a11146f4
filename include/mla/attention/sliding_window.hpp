#ifndef MLA_ATTENTION_SLIDING_WINDOW_HPP_
#define MLA_ATTENTION_SLIDING_WINDOW_HPP_

#include <algorithm>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// A window that slides along a text: a token sees the first `keep` rows and the last `rows`, its
/// own included. Those between them count for nothing, in positions either: the kept rows are as
/// near as if the others had never been there (Xiao et al. 2023, attention sinks).
struct SlidingWindow {
  Index keep = 0;
  Index rows = 0;  ///< 0: no window, every row is seen

  explicit operator bool() const noexcept { return rows > 0; }
  /// Rows that a token sees at most.
  Index most() const noexcept { return keep + rows; }
  /// How many rows from `keep` on a token does not see that sees the first `visible` without the
  /// window.
  Index hidden(Index visible) const noexcept {
    return rows > 0 ? std::max<Index>(0, visible - most()) : 0;
  }
  /// How many rows from `keep` on a cache of `size` tokens can forget, where the next token comes
  /// after the first `tokens` of them. Of those behind the kept rows one stays.
  Index slides(Index size, Index tokens) const noexcept {
    const Index behind = std::max<Index>(0, size - keep - 1);
    return std::min(hidden(std::min(tokens, size) + 1), behind);
  }
  bool operator==(const SlidingWindow&) const = default;
};

/// Throws std::invalid_argument for a window that cannot be, or of more than `most` tokens.
inline void require_window(const SlidingWindow& window, Index most) {
  require(window.keep >= 0 && window.rows >= 0 && window.keep <= most &&
              window.rows <= most - (window ? window.keep : 0),
          "a window of the first ", window.keep, " and the last ", window.rows,
          " tokens cannot be: there may be ", most, " of them");
}

}  // namespace mla

#endif  // MLA_ATTENTION_SLIDING_WINDOW_HPP_
