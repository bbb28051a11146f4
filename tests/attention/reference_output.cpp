// The reference is costly to compile, so all tests share this one copy of it.
#include "mla/attention/reference.hpp"

#include "support/test_layer.hpp"

namespace mla::test {

DoubleMatrix reference_output(const TestLayer& layer, const RowMajorMatrix& x,
                              std::span<const Index> positions,
                              std::span<const std::uint8_t> mask) {
  return reference::forward<double>(layer.config(), layer.weights.views(), x.cast<double>(),
                                    positions, mask)
      .output;
}

}  // namespace mla::test
