#include "mla/attention/attention_weights.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/compare.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

struct NamedTensor {
  const char* name;
  WeightView AttentionWeights::*tensor;
};

constexpr NamedTensor kTensors[] = {
    {"q_proj", &AttentionWeights::q_proj},
    {"q_a_proj", &AttentionWeights::q_a_proj},
    {"q_a_layernorm", &AttentionWeights::q_a_layernorm},
    {"q_b_proj", &AttentionWeights::q_b_proj},
    {"q_b_nope_proj", &AttentionWeights::q_b_nope_proj},
    {"q_b_rope_proj", &AttentionWeights::q_b_rope_proj},
    {"kv_a_proj_with_mqa", &AttentionWeights::kv_a_proj_with_mqa},
    {"kv_a_proj", &AttentionWeights::kv_a_proj},
    {"k_rope_proj", &AttentionWeights::k_rope_proj},
    {"kv_a_layernorm", &AttentionWeights::kv_a_layernorm},
    {"kv_b_proj", &AttentionWeights::kv_b_proj},
    {"k_b_proj", &AttentionWeights::k_b_proj},
    {"v_b_proj", &AttentionWeights::v_b_proj},
    {"o_proj", &AttentionWeights::o_proj},
    {"q_a_proj_bias", &AttentionWeights::q_a_proj_bias},
    {"kv_a_proj_with_mqa_bias", &AttentionWeights::kv_a_proj_with_mqa_bias},
    {"o_proj_bias", &AttentionWeights::o_proj_bias},
};

bool is_bias(const NamedTensor& tensor) {
  return std::string(tensor.name).find("bias") != std::string::npos;
}

// Every way to spoil one tensor of weights that fit.
void expect_each_tensor_checked(const AttentionConfig& config, const WeightOptions& options) {
  Random random(1);
  const RandomWeights memory(config, options, random);
  const AttentionWeights& good = memory.views();
  ASSERT_NO_THROW(good.validate(config));
  const float number = 0.0f;
  for (const NamedTensor& tensor : kTensors) {
    AttentionWeights bad = good;
    WeightView& view = bad.*tensor.tensor;
    const std::string name = std::string("tensor ") + tensor.name + " ";
    const auto refused = [&](const std::string& why) {
      return refuses([&] { bad.validate(config); }, {name.c_str(), why.c_str()});
    };
    if (!view) {
      if (is_bias(tensor)) continue;  // optional
      view = {&number, 1, 1};         // the other half of a pair may be reported as missing
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
    if (is_bias(tensor)) continue;
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

TEST(AttentionWeights, NamesTheTensorThatIsMissing) {
  Random random(1);
  const RandomWeights memory(small_config(), {}, random);
  for (const char* name : {"q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa",
                           "kv_a_layernorm", "kv_b_proj", "o_proj"})
    for (const NamedTensor& tensor : kTensors) {
      if (tensor.name != std::string(name)) continue;
      AttentionWeights bad = memory.views();
      bad.*tensor.tensor = {};
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
