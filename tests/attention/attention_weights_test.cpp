#include "mla/attention/attention_weights.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/compare.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

bool is_optional(const AttentionWeightField& tensor) {
  return tensor.name.ends_with("bias") && !tensor.name.starts_with("indexer.");
}

// Every way to spoil one tensor of weights that fit.
void expect_each_tensor_checked(const AttentionConfig& config, const WeightOptions& options) {
  Random random(1);
  const RandomWeights memory(config, options, random);
  const AttentionWeights& good = memory.views();
  ASSERT_NO_THROW(good.validate(config));
  const float number = 0.0f;
  for (const AttentionWeightField& tensor : kAttentionWeightFields) {
    AttentionWeights bad = good;
    WeightView& view = bad.*tensor.field;
    const std::string name = "tensor " + std::string(tensor.name) + " ";
    const auto refused = [&](const std::string& why) {
      return refuses([&] { bad.validate(config); }, {name.c_str(), why.c_str()});
    };
    if (!view) {
      if (is_optional(tensor)) continue;  // optional
      view = {&number, 1, 1};             // the other half of a pair may be reported as missing
      EXPECT_THROW(bad.validate(config), std::invalid_argument) << tensor.name;
      continue;
    }
    const WeightView fits = view;
    const auto shape = [](Index rows, Index cols) {
      return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    };
    const std::string both = shape(fits.rows, fits.cols) + ", got ";
    view.rows = fits.rows + 1;
    EXPECT_TRUE(refused(both + shape(view.rows, view.cols)));
    view = fits;
    view.cols = fits.cols - 1;
    EXPECT_TRUE(refused(both + shape(view.rows, view.cols)));
    view = fits;
    std::swap(view.rows, view.cols);
    EXPECT_TRUE(view.rows == view.cols || refused(both + shape(view.rows, view.cols)));
    if (is_optional(tensor)) continue;
    view = {};
    EXPECT_THROW(bad.validate(config), std::invalid_argument) << tensor.name;
  }
}

TEST(AttentionWeights, ChecksEachTensorOfACompressedQuery) {
  expect_each_tensor_checked(small_config(), {});
}
TEST(AttentionWeights, ChecksEachTensorOfAnUncompressedQuery) {
  expect_each_tensor_checked(make_config(48, 3, 0, 36, 12, 10, 14), {});
}
TEST(AttentionWeights, ChecksEachTensorStoredInParts) {
  expect_each_tensor_checked(AttentionConfig::lesson(48, 4, 24, 20, 8), {.split = true});
}
TEST(AttentionWeights, ChecksBiases) {
  expect_each_tensor_checked(small_config(), {.biases = true});
}

TEST(AttentionWeights, ChecksEachTensorOfAnIndexer) {
  AttentionConfig config = small_config();
  config.indexer = {.type = IndexerType::full, .heads = 5, .head_dim = 14, .topk = 3};
  expect_each_tensor_checked(config, {});
}

TEST(AttentionWeights, NamesTheTensorThatIsMissing) {
  Random random(1);
  const RandomWeights memory(small_config(), {}, random);
  for (const char* name : {"q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa",
                           "kv_a_layernorm", "kv_b_proj", "o_proj"})
    for (const AttentionWeightField& tensor : kAttentionWeightFields) {
      if (tensor.name != name) continue;
      AttentionWeights bad = memory.views();
      bad.*tensor.field = {};
      EXPECT_TRUE(refuses([&] { bad.validate(small_config()); }, {name, "missing", "expected ["}));
    }
}

TEST(AttentionWeights, NamesTheTensorThatTheConfigurationDoesNotUse) {
  Random random(1);
  const RandomWeights memory(small_config(), {}, random);
  const float number = 0.0f;
  AttentionWeights bad = memory.views();
  bad.q_proj = {&number, 1, 1};
  EXPECT_TRUE(refuses([&] { bad.validate(small_config()); }, {"q_proj", "does not use it"}));

  AttentionConfig without_norm = small_config();
  without_norm.query_norm = false;
  EXPECT_TRUE(refuses([&] { memory.views().validate(without_norm); },
                      {"q_a_layernorm", "does not use it"}));

  const AttentionConfig lesson = AttentionConfig::lesson(48, 4, 24, 20, 8);
  const RandomWeights parts(lesson, {.split = true}, random);
  bad = parts.views();
  bad.kv_a_proj_with_mqa_bias = {&number, 1, 1};
  EXPECT_TRUE(refuses([&] { bad.validate(lesson); }, {"kv_a_proj_with_mqa_bias", "not use"}));
}

TEST(AttentionWeights, AreCheckedByTheLayer) {
  Random random(1);
  const RandomWeights memory(small_config(), {}, random);
  AttentionWeights bad = memory.views();
  bad.o_proj.rows = 47;
  EXPECT_TRUE(refuses([&] { MultiheadLatentAttention(small_config(), bad); },
                      {"o_proj", "[48, 42]", "[47, 42]"}));
}

}  // namespace
}  // namespace mla::test
