// A family of this test's own: with nothing but a Family in this file, and with names of keys and
// tensors that no other has, a model is the one that the same weights are as DeepSeek-V3.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"

namespace mla::test {
namespace {

constexpr std::string_view kToyTypes[] = {"toy"};
constexpr std::string_view kToyArchitectures[] = {"ToyForCausalLM"};
constexpr std::string_view kToyKeys[] = {"depth", "ffn", "toy_experts", "toy_decoration"};

AttentionConfig read_toy_attention(const ConfigReader& config) {
  AttentionConfig attention = families::read_attention_dims(config);
  attention.v_head_dim = config.size("v_head_dim");
  families::read_rope(config, attention);
  return attention;
}

void read_toy(const ConfigReader& config, ModelConfig& model) {
  families::read_decoder(config, model, "depth", "ffn");
  model.first_k_dense_replace = 1;
  model.experts = {.n_routed_experts = config.size("toy_experts"),
                   .num_experts_per_tok = 2,
                   .n_shared_experts = 2,
                   .moe_intermediate_size = 9,
                   .n_group = 3,
                   .topk_group = 2,
                   .routed_scaling_factor = 1.7};
  model.names.prefix = "toy.";
  model.names.router = "doorman.weight";
  model.names.router_bias = "doorman.bias";
  model.names.other_parts = {"decoration."};
}

constexpr Family kToy = {.model_types = kToyTypes,
                         .architectures = kToyArchitectures,
                         .keys = kToyKeys,
                         .read_attention = &read_toy_attention,
                         .read_model = &read_toy};
constexpr Family kToyFamilies[] = {kToy};

// Of the synthetic DeepSeek-V3 without multi-token prediction.
nlohmann::json toy_config() {
  nlohmann::json config = synthetic_config();
  config.update({{"model_type", "toy"},
                 {"architectures", {"ToyForCausalLM"}},
                 {"depth", config["num_hidden_layers"]},
                 {"ffn", config["intermediate_size"]},
                 {"toy_experts", config["n_routed_experts"]},
                 {"toy_decoration", "none"}});
  for (const char* key :
       {"num_hidden_layers", "intermediate_size", "n_routed_experts", "num_nextn_predict_layers",
        "first_k_dense_replace", "moe_layer_freq", "num_experts_per_tok", "n_shared_experts",
        "moe_intermediate_size", "n_group", "topk_group", "scoring_func", "topk_method",
        "norm_topk_prob", "routed_scaling_factor", "hidden_act"})
    config.erase(key);
  return config;
}

std::string toy_name(std::string name) {
  for (const auto& [from, to] :
       {std::pair<std::string, std::string>{"mlp.gate.weight", "mlp.doorman.weight"},
        {"mlp.gate.e_score_correction_bias", "mlp.doorman.bias"}})
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return "toy." + name;
}

TEST(ToyFamily, IsReadByWhatItsOwnFileSays) {
  nlohmann::json plain = synthetic_config();
  plain["num_nextn_predict_layers"] = 0;
  std::vector<SyntheticTensor> tensors = synthetic_tensors(plain);
  const SyntheticCheckpoint files(plain, tensors);
  for (SyntheticTensor& tensor : tensors) tensor.name = toy_name(tensor.name);
  tensors.push_back({"decoration.weight", {3, 3}, 1.0});
  const SyntheticCheckpoint toy_files(toy_config(), tensors);

  const ModelConfig config = load_model_config(toy_files.path(), kToyFamilies);
  EXPECT_EQ(config.model_type, "toy");
  const Checkpoint checkpoint(toy_files.path());
  const DecoderModel toy(config, load_decoder_weights(checkpoint, config));
  const DecoderModel model = DecoderModel::load(files.path());
  const auto tokens = random_tokens(20, model.vocab_size(), 3);
  DecoderState state(model.config()), toy_state(config);
  EXPECT_TRUE(same_bits(toy.forward(tokens, toy_state), model.forward(tokens, state)));
}

TEST(ToyFamily, IsUnknownToTheOthersAndKnowsItsKeysOnly) {
  EXPECT_TRUE(fails_naming([] { read_model_config(toy_config()); },
                           {"model_type = toy is not supported", "deepseek_v3"}));
  const auto refused = [](const char* key, const nlohmann::json& value,
                          std::vector<std::string> parts) {
    nlohmann::json config = toy_config();
    config[key] = value;
    return fails_naming([&] { read_model_config(config, "config.json", kToyFamilies); }, parts);
  };
  EXPECT_TRUE(refused("n_routed_experts", 6, {"n_routed_experts = 6 is not supported"}));
  EXPECT_TRUE(refused("index_topk", 6, {"index_topk = 6 is not supported"}));
  EXPECT_TRUE(refused("depth", 0, {"num_hidden_layers", "0"}));
  EXPECT_TRUE(refused("architectures", {"DeepseekV3ForCausalLM"},
                      {"architectures", "known are ToyForCausalLM"}));
}

}  // namespace
}  // namespace mla::test
