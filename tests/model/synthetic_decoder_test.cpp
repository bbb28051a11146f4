#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "model/reference_decoder.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/test_layer.hpp"

// Models of shapes that the trained one does not have, against a decoder in double.

namespace mla::test {
namespace {

struct ModelCase {
  std::string name;
  nlohmann::json config;
};

std::vector<ModelCase> model_cases() {
  std::vector<ModelCase> cases;
  const auto add = [&](const char* name, nlohmann::json config, const nlohmann::json& changes) {
    config.update(changes);
    cases.push_back({name, std::move(config)});
  };
  const nlohmann::json v3 = synthetic_config();
  add("V3", v3, nlohmann::json::object());
  add("TiedHead", v3, {{"tie_word_embeddings", true}, {"num_nextn_predict_layers", 0}});
  add("AttentionBias", v3, {{"attention_bias", true}});
  add("NoQueryCompression", v3, {{"q_lora_rank", nullptr}});
  add("AllLayersHaveExperts", v3, {{"first_k_dense_replace", 0}});
  add("EveryOtherLayerHasExperts", v3,
      {{"first_k_dense_replace", 0}, {"moe_layer_freq", 2}, {"num_hidden_layers", 4}});
  add("NoExperts", v3, {{"n_routed_experts", nullptr}});
  add("NoSharedExperts", v3, {{"n_shared_experts", nullptr}});
  add("WeightsNotNormalised", v3, {{"norm_topk_prob", false}});
  add("KimiK2OneGroup", v3, {{"model_type", "kimi_k2"}, {"n_group", 1}, {"topk_group", 1}});
  add("GroupsOfOne", v3, {{"n_group", 6}, {"topk_group", 3}});
  add("OneExpertAToken", v3, {{"num_experts_per_tok", 1}});
  add("AllExperts", v3, {{"num_experts_per_tok", 6}, {"topk_group", 3}});
  add("SoftmaxNoauxTc", v3, {{"scoring_func", "softmax"}});
  add("SigmoidGreedy", v3, {{"topk_method", "greedy"}});
  add("OneLayer", v3, {{"num_hidden_layers", 1}, {"first_k_dense_replace", 0}});
  add("Yarn", v3,
      {{"rope_scaling",
        {{"type", "yarn"},
         {"factor", 4.0},
         {"original_max_position_embeddings", 16},
         {"beta_fast", 32},
         {"beta_slow", 1},
         {"mscale", 1.0},
         {"mscale_all_dim", 0.7}}}});
  add("LargeEps", v3, {{"rms_norm_eps", 0.3}});
  add("V2Greedy", synthetic_v2_config("greedy"), {{"n_group", nullptr}, {"topk_group", nullptr}});
  add("V2Groups", synthetic_v2_config("group_limited_greedy"), nlohmann::json::object());
  add("V2Normalised", synthetic_v2_config("group_limited_greedy"), {{"norm_topk_prob", true}});
  add("V2LiteTied", synthetic_v2_config("greedy"),
      {{"q_lora_rank", nullptr}, {"tie_word_embeddings", true}});
  return cases;
}

class SyntheticDecoder : public ::testing::TestWithParam<ModelCase> {};

constexpr Index kPromptTokens = 75;  // more than a page of the cache

// Seeds are taken until no router decides by less than float32 can tell.
TEST_P(SyntheticDecoder, IsTheReferenceInDouble) {
  int compared = 0;
  for (std::uint64_t seed = 1; seed < 20 && compared < 2; ++seed) {
    const SyntheticCheckpoint files(GetParam().config, seed);
    const DecoderModel model = DecoderModel::load(files.path());
    const Checkpoint checkpoint(files.path());
    const auto tokens = random_tokens(kPromptTokens, model.vocab_size(), seed);
    ReferenceDecoder decoder(checkpoint, model.config());
    const ReferenceDecoder::Result expected = decoder.forward(tokens);
    if (decoder.margin() < 1e-5) continue;
    ++compared;
    for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      DecoderState state(model.config());
      Context context;
      RowMajorMatrix hidden(kPromptTokens, model.hidden_size()),
          logits(kPromptTokens, model.vocab_size());
      model.forward_hidden(tokens, state, hidden, context, {.mode = mode});
      model.head(hidden, logits, context);
      // Float32 rounding through a few layers of weights that amplify.
      EXPECT_TRUE(close(logits, expected.logits, 2e-5)) << "seed " << seed;
      ASSERT_EQ(model.prediction() != nullptr, expected.predictions.size() > 0);
      if (!model.prediction()) continue;
      RowMajorMatrix drafts(kPromptTokens - 1, model.vocab_size());
      model.prediction()->forward(hidden.topRows(kPromptTokens - 1), std::span(tokens).subspan(1),
                                  0, *state.prediction(), drafts, context, mode);
      EXPECT_TRUE(close(drafts, expected.predictions, 2e-5)) << "seed " << seed;
    }
  }
  EXPECT_GE(compared, 1);
}

// Calls of any size, chunks of any size, any threads: the same bits in logits and caches.
TEST_P(SyntheticDecoder, SplitsAndThreadsDoNotChangeABit) {
  const SyntheticCheckpoint files(GetParam().config);
  const DecoderModel model = DecoderModel::load(files.path());
  const auto tokens = random_tokens(kPromptTokens, model.vocab_size(), 5);
  for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    DecoderState whole(model.config());
    const RowMajorMatrix expected = model.forward(tokens, whole, {.mode = mode});
    const auto expect_same = [&](const RowMajorMatrix& logits, const DecoderState& state) {
      EXPECT_TRUE(same_bits(logits, expected));
      for (Index layer = 0; layer < state.layers(); ++layer)
        EXPECT_EQ(CacheContents(state.layer(layer)), CacheContents(whole.layer(layer)));
    };
    for (const Index chunk : {1, 2, 13, 64, 74}) {
      DecoderState state(model.config());
      expect_same(model.forward(tokens, state, {.mode = mode, .chunk_tokens = chunk}), state);
    }
    ThreadExecutor executor(3);
    Context context(executor);
    DecoderState state(model.config());
    RowMajorMatrix logits(kPromptTokens, model.vocab_size());
    for (Index first = 0, count = 1; first < kPromptTokens; first += count, count = 2 * count + 1) {
      const Index rows = std::min(count, kPromptTokens - first);
      model.forward(std::span(tokens).subspan(static_cast<std::size_t>(first),
                                              static_cast<std::size_t>(rows)),
                    state, logits.middleRows(first, rows), context, {.mode = mode});
    }
    expect_same(logits, state);
  }
}

// The state after a truncation is that of a text which never went further.
TEST_P(SyntheticDecoder, TruncatingIsExact) {
  const SyntheticCheckpoint files(GetParam().config);
  const DecoderModel model = DecoderModel::load(files.path());
  const auto tokens = random_tokens(kPromptTokens, model.vocab_size(), 6);
  const auto others = random_tokens(kPromptTokens, model.vocab_size(), 7);
  const DecoderOptions options = {.mode = AttentionForm::absorbed};
  DecoderState straight(model.config(), CacheFormat::bfloat16);
  DecoderState winding(model.config(), CacheFormat::bfloat16);
  const RowMajorMatrix expected = model.forward(tokens, straight, options);
  RowMajorMatrix actual(kPromptTokens, model.vocab_size());
  for (const Index end : {64, 70, 75}) {
    model.forward(others, winding, options);
    winding.truncate(0);
    actual.topRows(end) =
        model.forward(std::span(tokens).first(static_cast<std::size_t>(end)), winding, options);
    model.forward(std::span(others).first(9), winding, options);
    winding.truncate(end);
  }
  EXPECT_TRUE(same_bits(actual, expected));
  for (Index layer = 0; layer < straight.layers(); ++layer)
    EXPECT_EQ(CacheContents(winding.layer(layer)), CacheContents(straight.layer(layer)));
}

std::string case_name(const ::testing::TestParamInfo<ModelCase>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Models, SyntheticDecoder, ::testing::ValuesIn(model_cases()), case_name);

}  // namespace
}  // namespace mla::test
