// The decoder inside a larger model is the one that its weights are alone, and what is not known of
// the larger one is refused.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"

namespace mla::test {
namespace {

struct Larger {
  const char* name;
  const char* model_type;
  const char* architecture;
  const char* config_key;
  const char* prefix;
  std::vector<std::string> others;
  bool v2 = false;
};

void PrintTo(const Larger& larger, std::ostream* out) { *out << larger.name; }

class TextPartOf : public ::testing::TestWithParam<Larger> {
 protected:
  static nlohmann::json alone() {
    nlohmann::json config = GetParam().v2 ? synthetic_v2_config("greedy") : synthetic_config();
    config["num_nextn_predict_layers"] = 0;
    return config;
  }
  // Without model_type, which the larger model implies.
  static nlohmann::json larger() {
    nlohmann::json text = alone();
    text.erase("model_type");
    text.erase("architectures");
    if (GetParam().v2) {  // DeepSeek-VL2 leaves to the configuration class what is usual
      text.erase("rope_theta");
      text["use_mla"] = true;
    }
    return {{"model_type", GetParam().model_type},
            {"architectures", {GetParam().architecture}},
            {"vision_config", {{"hidden_size", 7}}},
            {GetParam().config_key, text}};
  }
};

TEST_P(TextPartOf, IsTheDecoderAlone) {
  std::vector<SyntheticTensor> tensors = synthetic_tensors(alone());
  const SyntheticCheckpoint files(alone(), tensors);
  for (SyntheticTensor& tensor : tensors) tensor.name = GetParam().prefix + tensor.name;
  for (const std::string& other : GetParam().others) tensors.push_back({other, {3, 4}, 1.0});
  const SyntheticCheckpoint larger_files(larger(), tensors);
  const DecoderModel decoder = DecoderModel::load(files.path());
  const DecoderModel part = DecoderModel::load(larger_files.path());
  const auto tokens = random_tokens(20, decoder.vocab_size(), 3);
  DecoderState state(decoder.config()), part_state(part.config());
  EXPECT_TRUE(same_bits(part.forward(tokens, part_state), decoder.forward(tokens, state)));

  tensors.push_back({"audio_tower.weight", {3, 4}, 1.0});
  const SyntheticCheckpoint unknown(larger(), tensors);
  EXPECT_TRUE(fails_naming([&] { DecoderModel::load(unknown.path()); },
                           {"audio_tower.weight", "not used"}));
}

TEST_P(TextPartOf, RefusesUnknownKeysOfBothLevels) {
  nlohmann::json config = larger();
  config["audio_config"] = {{"hidden_size", 3}};
  EXPECT_TRUE(fails_naming([&] { read_model_config(config); }, {"config.json: audio_config"}));
  config = larger();
  config[GetParam().config_key]["index_topk"] = 8;
  EXPECT_TRUE(fails_naming([&] { read_model_config(config); },
                           {"config.json: " + std::string(GetParam().config_key) + ".index_topk"}));
  config = larger();
  config["architectures"] = {"DeepseekV3ForCausalLM"};
  EXPECT_TRUE(fails_naming([&] { read_model_config(config); }, {"architectures"}));
  config = larger();
  config.erase(GetParam().config_key);
  EXPECT_TRUE(fails_naming([&] { read_model_config(config); }, {GetParam().config_key, "missing"}));
}

INSTANTIATE_TEST_SUITE_P(
    Published, TextPartOf,
    ::testing::Values(Larger{"KimiVL",
                             "kimi_vl",
                             "KimiVLForConditionalGeneration",
                             "text_config",
                             "language_model.",
                             {"vision_tower.a.weight", "multi_modal_projector.b.weight"}},
                      Larger{"KimiK25",
                             "kimi_k25",
                             "KimiK25ForConditionalGeneration",
                             "text_config",
                             "language_model.",
                             {"vision_tower.a.weight", "mm_projector.proj.0.weight"}},
                      Larger{"DeepSeekVL2",
                             "deepseek_vl_v2",
                             "DeepseekVLV2ForCausalLM",
                             "language_config",
                             "language.",
                             {"vision.a.weight", "projector.b.weight", "image_newline",
                              "view_seperator"},
                             true}),
    [](const auto& larger) { return std::string(larger.param.name); });

TEST(RefusedFamilies, AreRefusedWithTheReason) {
  for (const RefusedFamily& refused : kRefusedFamilies) {
    nlohmann::json config = synthetic_config();
    config["model_type"] = refused.model_type;
    EXPECT_TRUE(fails_naming(
        [&] { read_model_config(config); },
        {"model_type = " + std::string(refused.model_type), std::string(refused.reason)}));
  }
}

}  // namespace
}  // namespace mla::test
