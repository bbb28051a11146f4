// libmla.so: a single attention layer, of a checkpoint or of the caller's weights.

#include <gtest/gtest.h>
#include <mla.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "c_api.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/read_attention_config.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

TEST(CApiAttention, OfACheckpointIsTheLayerOfTheLibrary) {
  const auto context = new_context();
  const auto attention = made<OwnedAttention>(&mla_attention_load, kModel.c_str(), std::int64_t{1});
  mla_attention_config c;
  c.size = sizeof c;
  ASSERT_TRUE(ok(mla_attention_get_config(attention.get(), &c)));
  const AttentionConfig config = load_attention_config(kModel);
  EXPECT_EQ(c.hidden_size, config.hidden_size);
  EXPECT_STREQ(c.rope_scaling_type, "none");

  const Checkpoint checkpoint(kModel);
  const MultiheadLatentAttention expected(
      config, load_attention_weights(checkpoint, "model.layers.1.self_attn", config));
  Random random(2);
  const RowMajorMatrix x = random_matrix(70, config.hidden_size, random);
  RowMajorMatrix out(70, config.hidden_size), expected_out(70, config.hidden_size);
  const auto a = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  const auto b = made<OwnedCache>(&mla_cache_new, attention.get(), nullptr);
  const mla_sequence sequences[] = {{a.get(), 66}, {b.get(), 4}};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), sequences, 2, x.data(),
                                       out.data(), nullptr)));
  LatentCache a_cache(config, CacheFormat::bfloat16), b_cache(config);
  Context alone;
  expected.forward(x, {{&a_cache, 66}, {&b_cache, 4}}, expected_out, alone);
  EXPECT_TRUE(same_bits(out, expected_out));
  EXPECT_EQ(mla_cache_size(a.get()), 66);
  EXPECT_EQ(mla_cache_bytes_used(a.get()), a_cache.bytes_used());
  EXPECT_EQ(mla_cache_bytes_per_token(b.get()), b_cache.bytes_per_token());
  mla_attention* none = nullptr;
  EXPECT_TRUE(refused(mla_attention_load(kModel.c_str(), 99, &none), MLA_RUNTIME_ERROR,
                      "model.layers.99.self_attn"));
  EXPECT_TRUE(refused(mla_attention_load(kModel.c_str(), -1, &none), MLA_INVALID_ARGUMENT, "-1"));
}

// Weights, config and options of a caller's own.
class CApiOwnAttention : public testing::Test {
 protected:
  CApiOwnAttention() : config_(small_config()), random_(4), weights_(config_, options(), random_) {
    config_.rope_scaling = short_yarn(1.0, 0.7);
    mla_attention_config_init(&c_config_, sizeof c_config_);
    c_config_.hidden_size = config_.hidden_size;
    c_config_.num_attention_heads = config_.num_attention_heads;
    c_config_.q_lora_rank = config_.q_lora_rank;
    c_config_.kv_lora_rank = config_.kv_lora_rank;
    c_config_.qk_nope_head_dim = config_.qk_nope_head_dim;
    c_config_.qk_rope_head_dim = config_.qk_rope_head_dim;
    c_config_.v_head_dim = config_.v_head_dim;
    c_config_.rope_scaling_type = "yarn";
    c_config_.rope_factor = config_.rope_scaling.factor;
    c_config_.rope_original_max_position_embeddings =
        config_.rope_scaling.original_max_position_embeddings;
    c_config_.rope_beta_fast = config_.rope_scaling.beta_fast;
    c_config_.rope_beta_slow = config_.rope_scaling.beta_slow;
    c_config_.rope_mscale = config_.rope_scaling.mscale;
    c_config_.rope_mscale_all_dim = config_.rope_scaling.mscale_all_dim;
    const AttentionWeights& w = weights_.views();
    const auto add = [&](const char* name, const WeightView& view) {
      c_weights_.push_back(
          {name, name_of(view.format).data(), view.data, view.rows, view.cols, 0, nullptr});
    };
    add("q_a_proj", w.q_a_proj);
    add("q_a_layernorm", w.q_a_layernorm);
    add("q_b_proj", w.q_b_proj);
    add("kv_a_proj_with_mqa", w.kv_a_proj_with_mqa);
    add("kv_a_layernorm", w.kv_a_layernorm);
    add("kv_b_proj", w.kv_b_proj);
    add("o_proj", w.o_proj);
    add("q_a_proj_bias", w.q_a_proj_bias);
    add("kv_a_proj_with_mqa_bias", w.kv_a_proj_with_mqa_bias);
    add("o_proj_bias", w.o_proj_bias);
  }

  static WeightOptions options() { return {.mixed_formats = true, .biases = true}; }

  mla_status create(OwnedAttention& attention) {
    mla_attention* handle = nullptr;
    const mla_status status =
        mla_attention_new(&c_config_, c_weights_.data(), c_weights_.size(), &handle);
    attention.reset(handle);
    return status;
  }

  AttentionConfig config_;
  Random random_;
  RandomWeights weights_;
  mla_attention_config c_config_;
  std::vector<mla_weight> c_weights_;
};

TEST_F(CApiOwnAttention, TakesStridesPositionsPaddingAndMode) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  constexpr Index kTokens = 9;
  const Index width = config_.hidden_size;
  const RowMajorMatrix x = random_matrix(kTokens, width + 3, random_);
  RowMajorMatrix out = RowMajorMatrix::Constant(kTokens, width + 1, -7.0f);
  const std::int64_t positions[kTokens] = {0, 1, 2, 5, 6, 0, 2, 3, 4};
  const std::uint8_t mask[kTokens] = {1, 1, 1, 1, 1, 1, 0, 1, 1};
  mla_attention_options options;
  mla_attention_options_init(&options, sizeof options);
  options.x_stride = width + 3;
  options.out_stride = width + 1;
  options.position_ids = positions;
  options.attention_mask = mask;
  options.mode = MLA_FORM_DECOMPRESSED;
  const auto a = made<OwnedCache>(&mla_cache_new, attention.get(), "f32");
  const auto b = made<OwnedCache>(&mla_cache_new, attention.get(), "f16");
  const mla_sequence sequences[] = {{a.get(), 5}, {b.get(), 4}};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), sequences, 2, x.data(),
                                       out.data(), &options)));
  const MultiheadLatentAttention expected(config_, weights_.views());
  LatentCache a_cache(config_), b_cache(config_, CacheFormat::float16);
  RowMajorMatrix expected_out(kTokens, width);
  Context alone;
  expected.forward(x.leftCols(width), {{&a_cache, 5}, {&b_cache, 4}}, expected_out, alone,
                   {.mode = AttentionForm::decompressed,
                    .position_ids = std::span<const Index>(positions),
                    .attention_mask = mask});
  EXPECT_TRUE(same_bits(out.leftCols(width), expected_out));
  EXPECT_TRUE((out.col(width).array() == -7.0f).all());  // between the rows
  EXPECT_EQ(mla_cache_size(b.get()), 3);
}

// A tensor of 8 bits with a scale per row, used as it lies.
TEST_F(CApiOwnAttention, TakesScaledWeights) {
  AttentionWeights expected_weights = weights_.views();
  const Index rows = expected_weights.o_proj.rows, cols = expected_weights.o_proj.cols;
  std::vector<std::int8_t> codes;
  std::vector<float> scale_values;
  for (Index r = 0; r < rows; ++r) {
    scale_values.push_back(static_cast<float>(random_.uniform(1e-3, 1e-2)));
    for (Index c = 0; c < cols; ++c)
      codes.push_back(static_cast<std::int8_t>(random_.integer(-127, 127)));
  }
  Scales expected_scales;
  expected_scales.data = scale_values.data();
  expected_scales.block_cols = cols;
  expected_scales.stride = 1;
  expected_weights.o_proj =
      WeightView(codes.data(), WeightFormat::int8, rows, cols, expected_scales);
  mla_scales scales;
  mla_scales_init(&scales, sizeof scales);
  scales.data = scale_values.data();
  scales.block_cols = cols;
  scales.stride = 1;
  c_weights_[6] = {"o_proj", "int8", codes.data(), rows, cols, 0, &scales};

  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  const RowMajorMatrix x = random_matrix(5, config_.hidden_size, random_);
  RowMajorMatrix out(5, config_.hidden_size), expected_out(5, config_.hidden_size);
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "int8");
  const mla_sequence sequence = {cache.get(), 5};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), &sequence, 1, x.data(),
                                       out.data(), nullptr)));
  const MultiheadLatentAttention expected(config_, expected_weights);
  LatentCache expected_cache(config_, CacheFormat::int8);
  Context alone;
  expected.forward(x, expected_cache, expected_out, alone);
  EXPECT_TRUE(same_bits(out, expected_out));

  scales.format = "f64";
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "scales of format f64"));
  scales.format = "f32";
  scales.block_cols = 0;
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "tensor o_proj has scales"));
  c_weights_[6].scales = nullptr;
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "needs scales"));
}

TEST_F(CApiOwnAttention, CachesTruncateSaveAndRestore) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const TemporaryDirectory directory;
  const std::string path = (directory / "cache").string();
  const auto context = new_context();
  const Index width = config_.hidden_size;
  const RowMajorMatrix x = random_matrix(8, width, random_);
  RowMajorMatrix first(8, width), second(8, width);
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  const auto copy = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  ASSERT_TRUE(ok(mla_cache_reserve(cache.get(), 100)));
  const auto forward = [&](const OwnedCache& with, RowMajorMatrix& out) {
    const mla_sequence sequence = {with.get(), 8};
    return mla_attention_forward(attention.get(), context.get(), &sequence, 1, x.data(), out.data(),
                                 nullptr);
  };
  ASSERT_TRUE(ok(forward(cache, first)));
  ASSERT_TRUE(ok(mla_cache_truncate(cache.get(), 3)));
  ASSERT_TRUE(ok(mla_cache_save(cache.get(), path.c_str(), nullptr)));
  ASSERT_TRUE(ok(mla_cache_restore(copy.get(), path.c_str(), nullptr)));
  ASSERT_TRUE(ok(forward(cache, first)));
  ASSERT_TRUE(ok(forward(copy, second)));
  EXPECT_TRUE(same_bits(first, second));
  EXPECT_EQ(mla_cache_size(copy.get()), 11);
  EXPECT_TRUE(refused(mla_cache_truncate(copy.get(), 12), MLA_INVALID_ARGUMENT, "12"));
  EXPECT_TRUE(refused(mla_cache_reserve(copy.get(), -1), MLA_INVALID_ARGUMENT, "-1"));
  EXPECT_TRUE(
      refused(mla_cache_restore(copy.get(), path.c_str(), "x"), MLA_RUNTIME_ERROR, "label"));
  EXPECT_EQ(mla_cache_size(copy.get()), 11);
}

TEST_F(CApiOwnAttention, NamesTheWeightThatDoesNotFit) {
  const auto refuses = [&](auto change, std::string_view message) {
    const auto config = c_config_;
    const auto weights = c_weights_;
    change();
    OwnedAttention attention;
    EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, message));
    EXPECT_EQ(attention, nullptr);
    c_config_ = config;
    c_weights_ = weights;
  };
  refuses([&] { c_weights_.pop_back(), c_weights_[6].name = "p_proj"; },
          "there is no tensor p_proj");
  refuses([&] { c_weights_[0].name = "o_proj"; }, "tensor o_proj is given twice");
  refuses([&] { c_weights_[0].format = "f8"; }, "tensor q_a_proj has format f8");
  refuses([&] { c_weights_[0].format = nullptr; }, "the format of a weight is NULL");
  refuses([&] { c_weights_[0].name = nullptr; }, "the name of a weight is NULL");
  refuses([&] { c_weights_[0].data = nullptr; }, "the data of tensor q_a_proj is NULL");
  refuses([&] { c_weights_[0].rows += 1; }, "tensor q_a_proj must have shape");
  refuses([&] { c_weights_[0].stride = 1; }, "tensor q_a_proj has a stride of 1");
  refuses([&] { c_weights_[0].stride = -5; }, "tensor q_a_proj has a stride of -5");
  refuses([&] { c_weights_.erase(c_weights_.begin()); }, "tensor q_a_proj is missing");
  refuses([&] { c_config_.qk_rope_head_dim = 3; }, "qk_rope_head_dim must be even, got 3");
  refuses([&] { c_config_.num_attention_heads = INT64_MAX; }, "num_attention_heads");
  refuses([&] { c_config_.rope_scaling_type = "llama3"; }, "got llama3");
  mla_attention* none = nullptr;
  EXPECT_TRUE(refused(mla_attention_new(nullptr, nullptr, 0, &none), MLA_INVALID_ARGUMENT, "NULL"));
}

TEST_F(CApiOwnAttention, RefusesACallThatDoesNotFitAndLeavesTheCaches) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "f32");
  std::vector<float> x(static_cast<std::size_t>(2 * config_.hidden_size)), out(x.size());
  const mla_sequence sequence = {cache.get(), 2};
  const mla_sequence twice[] = {sequence, sequence};
  mla_attention_options options;
  mla_attention_options_init(&options, sizeof options);
  const auto refuses = [&](mla_status status, mla_status expected, std::string_view message) {
    EXPECT_TRUE(refused(status, expected, message));
    EXPECT_EQ(mla_cache_size(cache.get()), 0);
  };
  const auto forward = [&](const mla_sequence* sequences, std::size_t count, const float* in) {
    return mla_attention_forward(attention.get(), context.get(), sequences, count, in, out.data(),
                                 &options);
  };
  refuses(forward(twice, 2, x.data()), MLA_BUSY, "the cache is in use");
  refuses(forward(&sequence, 1, nullptr), MLA_INVALID_ARGUMENT, "x is NULL");
  const mla_sequence endless = {cache.get(), SIZE_MAX};
  refuses(forward(&endless, 1, x.data()), MLA_INVALID_ARGUMENT, "cannot have");
  options.x_stride = 5;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "x_stride must be 0 or at least");
  options.x_stride = 0;
  const std::int64_t positions[] = {5, 4};
  options.position_ids = positions;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "position_ids must rise");
  options.position_ids = nullptr;
  options.mode = -1;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "mode is -1");
  options.mode = MLA_FORM_AUTOMATIC;
  EXPECT_TRUE(ok(forward(&sequence, 1, x.data())));

  const auto other = made<OwnedAttention>(&mla_attention_load, kModel.c_str(), std::int64_t{0});
  const auto other_cache = made<OwnedCache>(&mla_cache_new, other.get(), "f32");
  const mla_sequence foreign = {other_cache.get(), 2};
  EXPECT_EQ(forward(&foreign, 1, x.data()), MLA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace mla::test
