// The reference is costly to compile, so all tests share this one copy of it.
#include "mla/attention/reference.hpp"

#include "support/test_layer.hpp"

namespace mla::test {

namespace {

template <class Scalar>
ReferenceResult result(const TestLayer& layer, const RowMajorMatrix& x,
                       std::span<const Index> positions, const reference::Mask& mask) {
  const reference::Result<Scalar> r = reference::forward<Scalar>(
      layer.config(), layer.weights.views(), x.cast<Scalar>(), positions, mask);
  DoubleMatrix rows(x.rows(), layer.config().cache_row_width());
  rows << r.latent.template cast<double>(), r.rope_key.template cast<double>();
  return {r.output.template cast<double>(), rows};
}

}  // namespace

ReferenceResult reference_result(const TestLayer& layer, const RowMajorMatrix& x,
                                 std::span<const Index> positions,
                                 std::span<const std::uint8_t> mask) {
  return result<double>(layer, x, positions, {.keep = mask});
}

ReferenceResult reference_result_in_float(const TestLayer& layer, const RowMajorMatrix& x,
                                          std::span<const Index> positions,
                                          std::span<const std::uint8_t> mask) {
  return result<float>(layer, x, positions, {.keep = mask});
}

DoubleMatrix reference_output(const TestLayer& layer, const RowMajorMatrix& x,
                              std::span<const Index> positions,
                              std::span<const std::uint8_t> mask) {
  return reference_result(layer, x, positions, mask).output;
}

DoubleMatrix reference_output_of_selection(const TestLayer& layer, const RowMajorMatrix& x,
                                           std::span<const Index> positions,
                                           MatrixView<const std::uint8_t> selected) {
  return result<double>(layer, x, positions, {.selected = selected}).output;
}

std::vector<std::uint8_t> reference_selection(const TestLayer& layer, const RowMajorMatrix& x,
                                              std::span<const Index> positions) {
  return reference::select_keys(
      reference::index_scores<double>(layer.config(), layer.weights.views(), x.cast<double>(),
                                      positions),
      layer.config().indexer.topk);
}

DoubleMatrix reference_output_over(const TestLayer& layer, const RowMajorMatrix& x,
                                   std::span<const Index> positions, const DoubleMatrix& rows) {
  const AttentionConfig& config = layer.config();
  const auto queries =
      reference::queries<double>(config, layer.weights.views(), x.cast<double>(), positions);
  return reference::attend<double>(
      config, layer.weights.views(), queries,
      {rows.leftCols(config.kv_lora_rank), rows.rightCols(config.rope_key_width())}, {});
}

}  // namespace mla::test
