#include "mla/core/attention_config.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "support/compare.hpp"

namespace mla::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct BadField {
  const char* field;
  const char* number;  // as it appears in the message
  std::function<void(AttentionConfig&)> spoil;
};

TEST(AttentionConfig, RefusesEachFieldByNameAndNumber) {
  using C = AttentionConfig;
  const BadField cases[] = {
      {"hidden_size", "0", [](C& c) { c.hidden_size = 0; }},
      {"hidden_size", "-7168", [](C& c) { c.hidden_size = -7168; }},
      {"num_attention_heads", "0", [](C& c) { c.num_attention_heads = 0; }},
      {"num_attention_heads", "16777217", [](C& c) { c.num_attention_heads = (1 << 24) + 1; }},
      {"q_lora_rank", "-1", [](C& c) { c.q_lora_rank = -1; }},
      {"q_lora_rank", "16777217", [](C& c) { c.q_lora_rank = (1 << 24) + 1; }},
      {"kv_lora_rank", "0", [](C& c) { c.kv_lora_rank = 0; }},
      {"kv_lora_rank", "9223372036854775807",
       [](C& c) { c.kv_lora_rank = std::numeric_limits<Index>::max(); }},
      {"qk_nope_head_dim", "-128", [](C& c) { c.qk_nope_head_dim = -128; }},
      {"qk_rope_head_dim", "0", [](C& c) { c.qk_rope_head_dim = 0; }},
      {"qk_rope_head_dim must be even", "63", [](C& c) { c.qk_rope_head_dim = 63; }},
      {"v_head_dim", "0", [](C& c) { c.v_head_dim = 0; }},
      {"rope_theta", "1", [](C& c) { c.rope_theta = 1.0; }},
      {"rope_theta", "nan", [](C& c) { c.rope_theta = kNaN; }},
      {"rope_theta", "inf", [](C& c) { c.rope_theta = kInfinity; }},
      {"q_a_layernorm_eps", "-1e-06", [](C& c) { c.q_a_layernorm_eps = -1e-6; }},
      {"kv_a_layernorm_eps", "nan", [](C& c) { c.kv_a_layernorm_eps = kNaN; }},
      {"rope_scaling.factor", "0.5", [](C& c) { c.rope_scaling.factor = 0.5; }},
      {"rope_scaling.factor", "inf", [](C& c) { c.rope_scaling.factor = kInfinity; }},
      {"original_max_position_embeddings", "0",
       [](C& c) { c.rope_scaling.original_max_position_embeddings = 0; }},
      {"beta_fast 1 and beta_slow 32", "1",
       [](C& c) {
         c.rope_scaling.beta_fast = 1.0;
         c.rope_scaling.beta_slow = 32.0;
       }},
      {"beta_slow", "0", [](C& c) { c.rope_scaling.beta_slow = 0.0; }},
      {"rope_scaling.mscale ", "-1", [](C& c) { c.rope_scaling.mscale = -1.0; }},
      {"rope_scaling.mscale_all_dim", "nan", [](C& c) { c.rope_scaling.mscale_all_dim = kNaN; }},
  };
  for (const BadField& bad : cases) {
    AttentionConfig config = AttentionConfig::deepseek_v3();
    ASSERT_NO_THROW(config.validate());
    bad.spoil(config);
    EXPECT_TRUE(refuses([&] { config.validate(); }, {bad.field, bad.number})) << bad.field;
  }
}

TEST(AttentionConfig, RefusesDynamicScalingBecauseItWouldRotateCachedKeysAgain) {
  AttentionConfig config;
  config.rope_scaling = {RopeScalingType::dynamic, 2.0};
  EXPECT_TRUE(refuses([&] { config.validate(); }, {"rope_scaling.type", "dynamic", "cached"}));
}

TEST(RopeScaling, RefusesAValueThatIsNoType) {
  for (const int value : {-1, 6, 9}) {
    RopeScaling scaling;
    scaling.type = static_cast<RopeScalingType>(value);
    const std::string number = std::to_string(value);
    EXPECT_TRUE(refuses([&] { scaling.validate(); }, {"rope_scaling.type", number.c_str()}));
    EXPECT_EQ(name_of(scaling.type), "");
  }
}

TEST(AttentionConfig, ReadsOnlyTheScalingFieldsThatTheTypeUses) {
  AttentionConfig config;
  config.rope_scaling.factor = -1.0;
  EXPECT_NO_THROW(config.validate());  // none
  config.rope_scaling = {RopeScalingType::linear, 4.0, -1, -1.0, -1.0, -1.0, -1.0};
  EXPECT_NO_THROW(config.validate());
  config.rope_scaling.type = RopeScalingType::ntk;
  EXPECT_NO_THROW(config.validate());
}

TEST(AttentionConfig, TakesOddRanksAndDimsThatAreNoPowersOfTwo) {
  AttentionConfig config;
  config.hidden_size = 33;
  config.num_attention_heads = 3;
  config.q_lora_rank = 17;
  config.kv_lora_rank = 31;
  config.qk_nope_head_dim = 5;
  config.qk_rope_head_dim = 6;
  config.v_head_dim = 1;
  EXPECT_NO_THROW(config.validate());
  EXPECT_EQ(config.qk_head_dim(), 11);
  EXPECT_EQ(config.rope_key_width(), 6);
  EXPECT_EQ(config.cache_row_width(), 37);
  config.rope_key_per_head = true;
  EXPECT_EQ(config.rope_key_width(), 18);
  EXPECT_EQ(config.cache_row_width(), 49);
}

TEST(AttentionConfig, PresetsAreThePublishedModels) {
  const auto v3 = AttentionConfig::deepseek_v3();
  EXPECT_EQ(v3.cache_row_width(), 576);
  EXPECT_EQ(v3.qk_head_dim(), 192);
  EXPECT_EQ(v3.rope_scaling.mscale, 1.0);
  EXPECT_EQ(v3.rope_scaling.mscale_all_dim, 1.0);
  const auto lite = AttentionConfig::deepseek_v2_lite();
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.rope_scaling.mscale_all_dim, 0.707);
  const auto kimi = AttentionConfig::kimi_k2();
  EXPECT_EQ(kimi.num_attention_heads, 64);
  EXPECT_EQ(kimi.rope_theta, 50000.0);
  const auto lesson = AttentionConfig::lesson();
  EXPECT_FALSE(lesson.query_norm);
  EXPECT_TRUE(lesson.rope_key_per_head);
  EXPECT_EQ(lesson.qk_nope_head_dim, 32);
  for (const auto& config : {v3, lite, kimi, lesson}) EXPECT_NO_THROW(config.validate());
}

TEST(AttentionConfig, LessonRefusesAnEmbeddingThatHeadsDoNotDivide) {
  EXPECT_TRUE(refuses([] { AttentionConfig::lesson(256, 7); }, {"n_embd", "n_head", "256", "7"}));
  EXPECT_TRUE(refuses([] { AttentionConfig::lesson(256, 0); }, {"n_head", "0"}));
}

// Models of the reference code normalise both latents with 1e-6 even where rms_norm_eps is 1e-5.
TEST(AttentionConfig, NormEpsDefaultsToOneInAMillion) {
  EXPECT_EQ(AttentionConfig().q_a_layernorm_eps, 1e-6);
  EXPECT_EQ(AttentionConfig().kv_a_layernorm_eps, 1e-6);
}

TEST(AttentionConfig, ComparesEveryField) {
  AttentionConfig a, b;
  EXPECT_EQ(a, b);
  b.rope_scaling.mscale = 0.5;
  EXPECT_NE(a, b);
}

TEST(RopeScalingType, HasItsPublishedName) {
  EXPECT_EQ(name_of(RopeScalingType::none), "none");
  EXPECT_EQ(name_of(RopeScalingType::linear), "linear");
  EXPECT_EQ(name_of(RopeScalingType::dynamic), "dynamic");
  EXPECT_EQ(name_of(RopeScalingType::ntk), "ntk");
  EXPECT_EQ(name_of(RopeScalingType::yarn), "yarn");
}

TEST(Validated, IsTheObjectItselfUnlessItRefuses) {
  AttentionConfig config;
  EXPECT_EQ(&validated(config), &config);
  config.v_head_dim = -3;
  EXPECT_TRUE(refuses([&] { validated(config); }, {"v_head_dim", "-3"}));
}

TEST(Require, JoinsThePartsOfTheMessage) {
  EXPECT_TRUE(
      refuses([] { require(false, "width ", 3, " is not ", 4.5); }, {"width 3 is not 4.5"}));
  EXPECT_NO_THROW(require(true, "never seen"));
  EXPECT_TRUE(throws<std::runtime_error>([] { throw_runtime("file ", 7); }, {"file 7"}));
}

}  // namespace
}  // namespace mla::test
