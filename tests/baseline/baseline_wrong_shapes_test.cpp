// The baseline refuses every wrong shape before it reads or writes anything; see
// support/wrong_shapes.hpp.

#include "support/wrong_shapes.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "baseline/grouped_query_layer.hpp"
#include "mla/baseline/grouped_query_attention.hpp"

namespace mla::test {
namespace {

GroupedQueryConfig config_of(Index key_value_heads) {
  return {.hidden_size = 52,
          .num_attention_heads = 4,
          .num_key_value_heads = key_value_heads,
          .head_dim = 34,
          .v_head_dim = 18,
          .rope_theta = 10000.0};
}

using Views = ExactViews::Views;

Eigen::Map<RowMajorMatrix> matrix_of(const MatrixView<float>& view) {
  return {view.data, view.rows, view.cols};
}

TEST(BaselineWrongShapes, OfALayersCall) {
  for (const Index key_value_heads : {1, 2, 4}) {
    const GroupedQueryLayer layer(config_of(key_value_heads));
    const GroupedQueryAttention attention = layer.attention();
    Context context;
    ExactViews views;
    for (const Index past : {0, 70})
      for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
        GroupedKVCache cache(layer.config, format);
        if (past > 0) attention.forward(matrix_of(views.make(past, 52)), cache);
        const Index size = cache.size();
        views.expect_only({{3, 52}, {3, 52}}, [&](const Views& v) {
          auto out = matrix_of(v[1]);
          attention.forward(matrix_of(v[0]), cache, out, context);
          cache.truncate(size);
        });
        EXPECT_EQ(cache.size(), size);
        for (const std::size_t count : {1, 2, 4}) {
          const std::vector<Index> positions = positions_from(past, static_cast<Index>(count));
          auto out = matrix_of(views.make(3, 52));
          EXPECT_THROW(
              attention.forward(matrix_of(views.make(3, 52)), cache, out, context, positions),
              std::invalid_argument);
        }
      }
  }
}

TEST(BaselineWrongShapes, OfWhatIsAppendedToACache) {
  for (const Index heads : {1, 2, 4})
    for (const CacheFormat format :
         {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::float16}) {
      GroupedKVCache cache(config_of(heads), format);
      ExactViews views;
      const std::vector<Index> positions = positions_from(0, 3);
      views.expect_only({{3, heads * 34}, {3, heads * 18}}, [&](const Views& v) {
        cache.append(v[0], v[1], positions);
        cache.clear();
      });
      EXPECT_EQ(cache.size(), 0);
    }
}

TEST(BaselineWrongShapes, OfWeightsAndCachesOfOtherLayers) {
  const GroupedQueryLayer layer(config_of(2));
  const GroupedQueryWeights right = layer.weights();
  ExactViews views;
  WeightView GroupedQueryWeights::*const matrices[] = {
      &GroupedQueryWeights::q_proj,      &GroupedQueryWeights::k_proj,
      &GroupedQueryWeights::v_proj,      &GroupedQueryWeights::o_proj,
      &GroupedQueryWeights::q_proj_bias, &GroupedQueryWeights::k_proj_bias,
      &GroupedQueryWeights::v_proj_bias, &GroupedQueryWeights::o_proj_bias};
  for (const auto matrix : matrices)
    for (const auto& [rows, cols] : {std::pair{0, -1}, {0, 1}, {-1, 0}, {1, 0}}) {
      if ((right.*matrix).rows + rows == 0) continue;  // no matrix at all
      GroupedQueryWeights wrong = right;
      wrong.*matrix = views.make((right.*matrix).rows + rows, (right.*matrix).cols + cols);
      EXPECT_THROW(GroupedQueryAttention(layer.config, wrong), std::invalid_argument);
    }

  const GroupedQueryAttention attention = layer.attention();
  for (const auto field : {&GroupedQueryConfig::head_dim, &GroupedQueryConfig::num_key_value_heads})
    for (const Index other : {1, 4, 32, 36}) {
      GroupedQueryConfig config = layer.config;
      config.*field = other;
      if (config.num_attention_heads % config.num_key_value_heads != 0 || config.head_dim % 2 != 0)
        continue;
      GroupedKVCache cache(config);
      EXPECT_THROW(attention.forward(matrix_of(views.make(3, 52)), cache), std::invalid_argument);
      EXPECT_EQ(cache.size(), 0);
    }
}

}  // namespace
}  // namespace mla::test
