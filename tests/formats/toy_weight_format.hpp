#ifndef MLA_TESTS_FORMATS_TOY_WEIGHT_FORMAT_HPP_
#define MLA_TESTS_FORMATS_TOY_WEIGHT_FORMAT_HPP_

// A weight format that the library knows nothing of, as a program would bring its own
// (MLA_EXTRA_WEIGHT_FORMAT): 8-bit codes, and a float32 scale for 8 neighbouring columns of a row.

#include <cstdint>

#include "mla/core/weight_view.hpp"

namespace mla {

namespace toy {

inline void widen_weights(const WeightView& block, MatrixView<float> out) noexcept {
  for (Index r = 0; r < block.rows; ++r)
    for (Index c = 0; c < block.cols; ++c)
      out(r, c) =
          static_cast<float>(static_cast<std::int8_t>(*block.byte_of(r, c))) * block.scale_of(r, c);
}

}  // namespace toy

inline constexpr WeightFormatInfo kExtraWeightFormat = {"toy", 8, true, &toy::widen_weights};

}  // namespace mla

#endif  // MLA_TESTS_FORMATS_TOY_WEIGHT_FORMAT_HPP_
