#ifndef MLA_OPS_ROW_BLOCKS_HPP_
#define MLA_OPS_ROW_BLOCKS_HPP_

#include <algorithm>

#include "mla/core/executor.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Calls body(first, count) for blocks of `rows` rows of `width` numbers each, on the executor's
/// threads: work on one row after the other, too little for a task each. A block has about 32,768
/// numbers, so that few rows stay on the calling thread.
template <class Body>
void for_row_blocks(Executor& executor, Index rows, Index width, const Body& body) {
  constexpr Index kBlockNumbers = 32768;
  const Index most = std::max<Index>(1, kBlockNumbers / std::max<Index>(1, width));
  executor.parallel_for((rows + most - 1) / most, [&](Index block, Index) {
    const Index first = block * most;
    body(first, std::min(most, rows - first));
  });
}

}  // namespace mla

#endif  // MLA_OPS_ROW_BLOCKS_HPP_
