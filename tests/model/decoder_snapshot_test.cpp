#include "mla/model/decoder_snapshot.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/full_disk.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class DecoderSnapshot : public ::testing::Test {
 protected:
  DecoderSnapshot() { model_.forward(random_tokens(70, 37, 1), state_); }

  static std::vector<CacheContents> contents(const DecoderState& state) {
    std::vector<CacheContents> all;
    for (Index layer = 0; layer < state.layers(); ++layer) all.emplace_back(state.layer(layer));
    if (state.prediction()) all.emplace_back(*state.prediction());
    return all;
  }
  ::testing::AssertionResult refused(const ModelConfig& config, DecoderState& state,
                                     std::vector<std::string> parts) {
    parts.push_back(path_.string());
    const auto before = contents(state);
    const auto result = fails_naming([&] { restore_snapshot(path_, config, state); }, parts);
    if (!result || contents(state) == before) return result;
    return ::testing::AssertionFailure() << "the state has changed";
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "state";
  SyntheticCheckpoint checkpoint_{synthetic_config()};
  DecoderModel model_ = DecoderModel::load(checkpoint_.path());
  DecoderState state_{model_.config(), CacheFormat::bfloat16};
};

TEST_F(DecoderSnapshot, ARestoredTextContinuesBitForBit) {
  save_snapshot(path_, model_.config(), state_);
  DecoderState restored(model_.config(), CacheFormat::bfloat16);
  model_.forward(random_tokens(5, 37, 2), restored);  // what was there is gone
  restore_snapshot(path_, model_.config(), restored);
  EXPECT_EQ(contents(restored), contents(state_));
  const auto tokens = random_tokens(20, 37, 3);
  EXPECT_TRUE(same_bits(model_.forward(tokens, restored), model_.forward(tokens, state_)));
}

TEST_F(DecoderSnapshot, SpeculationGoesOnFromARestoredText) {
  const auto prompt = random_tokens(30, 37, 4);
  Context context;
  const auto continued = [&](DecoderState& state) {
    std::vector<TokenId> text;
    Sampler sampler(model_.vocab_size(), {.temperature = 0.0});
    generate(model_, state, prompt, sampler, context,
             {.max_tokens = 20,
              .stop_at_eos = false,
              .speculative = true,
              .on_token = [&](TokenId token) {
                text.push_back(token);
                return true;
              }});
    return text;
  };
  state_.clear();
  continued(state_);
  ASSERT_GT(state_.prediction()->size(), 0);
  save_snapshot(path_, model_.config(), state_);
  DecoderState restored(model_.config(), CacheFormat::bfloat16);
  restore_snapshot(path_, model_.config(), restored);
  EXPECT_EQ(continued(restored), continued(state_));
  EXPECT_EQ(contents(restored), contents(state_));
}

TEST_F(DecoderSnapshot, AnotherModelIsRefusedByTheField) {
  save_snapshot(path_, model_.config(), state_);
  ModelConfig other = model_.config();
  other.num_hidden_layers = 4;
  DecoderState deeper(other, CacheFormat::bfloat16);
  EXPECT_TRUE(refused(other, deeper, {"caches is 4 in the snapshot, but 5 here"}));
  other.num_nextn_predict_layers = 0;  // as many caches, but of other layers
  DecoderState without_prediction(other, CacheFormat::bfloat16);
  EXPECT_TRUE(
      refused(other, without_prediction, {"num_hidden_layers is 3 in the snapshot, but 4 here"}));
  other = model_.config();
  other.attention.rope_theta = 5e5;
  DecoderState turned(other, CacheFormat::bfloat16);
  EXPECT_TRUE(refused(other, turned, {"rope_theta is 10000 in the snapshot, but 5e+05 here"}));
  save_snapshot(path_, model_.config().attention, state_.layer(0));
  EXPECT_TRUE(refused(model_.config(), state_, {"caches is 1 in the snapshot, but 4 here"}));
}

TEST_F(DecoderSnapshot, LayersOfDifferentLengthsAreRefused) {
  DecoderState uneven(model_.config(), CacheFormat::bfloat16);
  model_.forward(random_tokens(70, 37, 1), uneven);
  uneven.layer(2).truncate(69);
  save_snapshot(path_, model_.config(), uneven);
  EXPECT_TRUE(refused(model_.config(), state_, {"layer 2 has 69 tokens, layer 0 has 70"}));
}

TEST_F(DecoderSnapshot, AStateOfAnotherModelIsTheCallersMistake) {
  ModelConfig other = model_.config();
  other.num_hidden_layers = 2;
  EXPECT_TRUE(refuses([&] { save_snapshot(path_, other, state_); }, {"3 layers", "has 2"}));
  EXPECT_TRUE(refuses([&] { restore_snapshot(path_, other, state_); }, {"3 layers", "has 2"}));
  other = model_.config();
  other.attention.rope_theta = 5e5;
  EXPECT_TRUE(refuses([&] { save_snapshot(path_, other, state_); },
                      {"the cache was made with rope_theta 10000, this layer has 5e+05"}));
}

}  // namespace
}  // namespace mla::test
