// What storage, and arithmetic, in 16 bits costs.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "attention/tolerances.hpp"
#include "support/isas.hpp"
#include "support/kernel_oracle.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class WeightPrecision : public EveryIsa {};
MLA_FOR_EVERY_ISA(WeightPrecision);

// The reference reads the same rounded weights, so storage in 16 or fewer bits costs nothing beyond
// rounding them, and the tolerance is that of float32.
TEST_P(WeightPrecision, WeightsOfEveryTypeKeepTheToleranceOfFloat32) {
  const WeightOptions every[] = {{.format = WeightFormat::float32},
                                 {.format = WeightFormat::bfloat16, .biases = true},
                                 {.format = WeightFormat::float16},
                                 {.format = WeightFormat::fp8_e4m3},
                                 {.format = WeightFormat::int8, .split = true},
                                 {.format = WeightFormat::int4},
                                 {.format = WeightFormat::fp4_e2m1, .biases = true},
                                 {.mixed_formats = true, .biases = true},
                                 {.mixed_formats = true, .split = true}};
  for (const AttentionConfig& config : {small_config(), make_config(65, 3, 33, 127, 17, 16, 65)})
    for (const WeightOptions& options : every) {
      TestLayer layer(config, options);
      const RowMajorMatrix x = layer.input(130);
      const DoubleMatrix expected = reference_output(layer, x, consecutive(0, 130));
      Context context(kernels());
      const WeightFormat format = options.mixed_formats ? WeightFormat::bfloat16 : options.format;
      const bool rounds = kernels().of(format).arithmetic == Arithmetic::bfloat16;
      const double tolerance = !rounds                  ? kFloat32Tolerance
                               : info_of(format).scaled ? kQuantisedBFloat16Tolerance
                                                        : kBFloat16Tolerance;
      for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed})
        EXPECT_TRUE(close(run_fresh<float>(layer, x, context, {.mode = mode}), expected, tolerance))
            << name_of(options.format) << " mixed " << options.mixed_formats;
    }
}

// What follows is attention of uncompressed queries over what the cache holds, in double and in
// plain loops: what remains of a 16-bit cache's error once the rounding of its rows is taken out.

double element_of(const WeightView& w, Index row, Index col) {
  return static_cast<double>(w.as<float>()(row, col));
}

struct KeysAndValues {
  DoubleMatrix keys;    // [tokens, nope + rope]
  DoubleMatrix values;  // [tokens, v]
};

// Of head h.
template <StorageElement T>
KeysAndValues keys_and_values(const TestLayer& layer, const LatentKVCache<T>& cache, Index h) {
  const AttentionConfig& c = layer.config();
  const WeightView& kv_b_proj = layer.weights.views().kv_b_proj;
  const Index nope = c.qk_nope_head_dim, rope = c.qk_rope_head_dim, v = c.v_head_dim;
  KeysAndValues all = {DoubleMatrix::Zero(cache.size(), nope + rope),
                       DoubleMatrix::Zero(cache.size(), v)};
  for (Index k = 0; k < cache.size(); ++k) {
    const auto row = [&](Index i) {
      return static_cast<double>(static_cast<float>(cache.row(k)[i]));
    };
    for (Index i = 0; i < c.kv_lora_rank; ++i) {
      for (Index d = 0; d < nope; ++d)
        all.keys(k, d) += element_of(kv_b_proj, h * (nope + v) + d, i) * row(i);
      for (Index d = 0; d < v; ++d)
        all.values(k, d) += element_of(kv_b_proj, h * (nope + v) + nope + d, i) * row(i);
    }
    for (Index d = 0; d < rope; ++d) all.keys(k, nope + d) = row(c.kv_lora_rank + d);
  }
  return all;
}

// Of head h and token t of x: [nope + rope], the rotary part rotated.
std::vector<double> query_of(const TestLayer& layer, const RowMajorMatrix& x, Index h, Index t) {
  const AttentionConfig& c = layer.config();
  const Index nope = c.qk_nope_head_dim, rope = c.qk_rope_head_dim;
  std::vector<double> query(static_cast<std::size_t>(nope + rope), 0.0);
  for (Index d = 0; d < nope + rope; ++d)
    for (Index i = 0; i < c.hidden_size; ++i)
      query[static_cast<std::size_t>(d)] +=
          element_of(layer.weights.views().q_proj, h * (nope + rope) + d, i) *
          static_cast<double>(x(t, i));
  for (Index pair = 0; pair < rope / 2; ++pair) {
    const double angle =
        static_cast<double>(t) *
        std::pow(c.rope_theta, -2.0 * static_cast<double>(pair) / static_cast<double>(rope));
    double& a = query[static_cast<std::size_t>(nope + 2 * pair)];
    double& b = query[static_cast<std::size_t>(nope + 2 * pair + 1)];
    const double rotated = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = rotated;
  }
  return query;
}

// Softmax attention of one query over the first `seen` keys: [v].
std::vector<double> attended(const KeysAndValues& all, const std::vector<double>& query,
                             double scale, Index seen) {
  std::vector<double> value(static_cast<std::size_t>(all.values.cols()), 0.0);
  double sum = 0.0;
  for (Index k = 0; k < seen; ++k) {
    double logit = 0.0;
    for (std::size_t d = 0; d < query.size(); ++d)
      logit += query[d] * all.keys(k, static_cast<Index>(d));
    const double p = std::exp(scale * logit);  // logits are small here
    sum += p;
    for (std::size_t d = 0; d < value.size(); ++d)
      value[d] += p * all.values(k, static_cast<Index>(d));
  }
  for (double& element : value) element /= sum;
  return value;
}

template <StorageElement T>
DoubleMatrix attention_over_cached_rows(const TestLayer& layer, const RowMajorMatrix& x,
                                        const LatentKVCache<T>& cache) {
  const AttentionConfig& c = layer.config();
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  DoubleMatrix out = DoubleMatrix::Zero(x.rows(), c.hidden_size);
  for (Index h = 0; h < c.num_attention_heads; ++h) {
    const KeysAndValues all = keys_and_values(layer, cache, h);
    for (Index t = 0; t < x.rows(); ++t) {
      const std::vector<double> value = attended(all, query_of(layer, x, h, t), scale, t + 1);
      for (Index o = 0; o < c.hidden_size; ++o)
        for (Index d = 0; d < c.v_head_dim; ++d)
          out(t, o) += element_of(layer.weights.views().o_proj, o, h * c.v_head_dim + d) *
                       value[static_cast<std::size_t>(d)];
    }
  }
  return out;
}

class CachePrecision : public EveryIsa {
 protected:
  // `bound`: of the output against a cache that does not round.
  template <StorageElement T>
  void expect_rounded_rows_and_nothing_more(double bound) {
    TestLayer layer(make_config(48, 3, 0, 64, 24, 16, 24));
    const RowMajorMatrix x = layer.input(200);
    const DoubleMatrix exact = reference_output(layer, x, consecutive(0, 200));
    for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      Context context(kernels());
      LatentKVCache<T> cache(layer.config());
      const RowMajorMatrix out = run(layer, x, cache, context, {.mode = mode});
      const bool rounds = arithmetic_for<T>(kernels()) == Arithmetic::bfloat16;
      EXPECT_TRUE(close(out, attention_over_cached_rows(layer, x, cache),
                        rounds ? kBFloat16Tolerance : kFloat32Tolerance))
          << name_of(kWeightFormatOf<T>);
      EXPECT_TRUE(close(out, exact, bound)) << name_of(kWeightFormatOf<T>);
      EXPECT_GT(relative_error(out, exact), bound / 10.0) << "the bound says nothing";
    }
  }
};
MLA_FOR_EVERY_ISA(CachePrecision);

TEST_P(CachePrecision, AFloat32CacheRoundsNothing) {
  TestLayer layer(make_config(48, 3, 0, 64, 24, 16, 24));
  const RowMajorMatrix x = layer.input(100);
  Context context(kernels());
  LatentKVCache<float> cache(layer.config());
  const RowMajorMatrix out = run(layer, x, cache, context);
  EXPECT_TRUE(close(out, attention_over_cached_rows(layer, x, cache), kFloat32Tolerance));
}

// Rounding to 8 bits is 2^-9 = 0.002 of each element; measured 0.0030 of the largest output.
TEST_P(CachePrecision, ABFloat16CacheCostsItsRoundingAndNothingMore) {
  expect_rounded_rows_and_nothing_more<bfloat16>(0.01);
}

// Rounding to 11 bits is 2^-12 = 0.00024 of each element; measured 0.00042.
TEST_P(CachePrecision, AFloat16CacheCostsItsRoundingAndNothingMore) {
  expect_rounded_rows_and_nothing_more<float16>(0.001);
}

}  // namespace
}  // namespace mla::test
