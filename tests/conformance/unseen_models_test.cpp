// Folders of models that nobody has seen, with goldens beside their weights that a decoder in plain
// loops over doubles made: mla-conformance passes them all, and notices one wrong weight.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "conformance/command_line.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/quantise.hpp"
#include "mla/io/save_checkpoint.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/plain_decoder.hpp"

namespace mla::test {
namespace {

struct Unseen {
  std::string name;
  nlohmann::json config;
  std::size_t shards = 1;
};

std::vector<Unseen> unseen_models() {
  const nlohmann::json yarn = {
      {"type", "yarn"},       {"factor", 40.0}, {"original_max_position_embeddings", 16},
      {"beta_fast", 32},      {"beta_slow", 1}, {"mscale", 1.0},
      {"mscale_all_dim", 0.7}};
  const nlohmann::json odd = {{"num_attention_heads", 7}, {"q_lora_rank", 19},
                              {"kv_lora_rank", 23},       {"qk_nope_head_dim", 5},
                              {"qk_rope_head_dim", 10},   {"v_head_dim", 9},
                              {"hidden_size", 31},        {"moe_intermediate_size", 11},
                              {"vocab_size", 53},         {"max_position_embeddings", 131072}};
  std::vector<Unseen> models;
  const auto add = [&](const char* name, nlohmann::json config, const nlohmann::json& changes,
                       std::size_t shards = 1) {
    config.update(odd);
    config.update(changes);
    models.push_back({name, std::move(config), shards});
  };
  const nlohmann::json v3 = synthetic_config(), none = nlohmann::json::object();
  nlohmann::json kimi = v3;
  kimi.update({{"architectures", {"DeepseekV3ForCausalLM"}},
               {"model_type", "kimi_k2"},
               {"n_group", 1},
               {"topk_group", 1},
               {"num_experts_per_tok", 3}});
  add("V3Grouped", v3, none);
  add("V3YarnInThreeShards", v3, {{"rope_scaling", yarn}, {"rope_theta", 50000}}, 3);
  add("V3NoPredictionTied", v3, {{"num_nextn_predict_layers", 0}, {"tie_word_embeddings", true}});
  add("V3EveryOtherLayer", v3,
      {{"num_hidden_layers", 5}, {"first_k_dense_replace", 2}, {"moe_layer_freq", 2}});
  add("V3OneGroupKept", v3, {{"topk_group", 1}, {"norm_topk_prob", false}});
  add("KimiK2", kimi, {{"rope_scaling", yarn}, {"routed_scaling_factor", 2.827}});
  add("KimiK2NoPrediction", kimi, {{"num_nextn_predict_layers", 0}}, 3);
  add("AxK1", v3,
      {{"model_type", "axk1"},
       {"architectures", {"AXK1ForCausalLM"}},
       {"num_nextn_predict_layers", nullptr}});
  add("JoyAIWithADensePrediction", v3,
      {{"model_type", "joyai_llm_flash"}, {"architectures", {"JoyAILLMFlashForCausalLM"}}});
  add("V2Groups", synthetic_v2_config("group_limited_greedy"), {{"rope_scaling", yarn}}, 3);
  add("V2Greedy", synthetic_v2_config("greedy"), {{"q_lora_rank", nullptr}});
  add("V2GreedyTiedNormalised", synthetic_v2_config("greedy"),
      {{"tie_word_embeddings", true}, {"norm_topk_prob", true}, {"n_shared_experts", nullptr}});
  return models;
}

// The matrix or vector that a tensor is the numbers or codes of; empty for scales and shapes.
std::string matrix_of(const std::string& name) {
  const std::string_view packed = "_packed";
  if (name.ends_with(packed)) return name.substr(0, name.size() - packed.size());
  return name.ends_with("_scale") || name.ends_with("_shape") ? "" : name;
}

PlainDecoder::Tensors tensors_of(const std::filesystem::path& directory) {
  const Checkpoint checkpoint(directory);
  PlainDecoder::Tensors tensors;
  for (const std::string& name : checkpoint.names()) {
    const SafetensorsTensor& tensor = checkpoint.tensor(name);
    const std::string matrix = matrix_of(name);
    if (matrix.empty()) continue;  // a part of a quantised one
    const auto cols = tensor.shape.size() == 1 ? 1 : tensor.shape[1];
    const Index stored_cols =
        name == matrix ? cols : checkpoint.tensor(matrix + "_shape").values<std::int32_t>()[1];
    const WeightView weight = tensor.shape.size() == 1
                                  ? checkpoint.vector(name, tensor.shape[0])
                                  : checkpoint.matrix(matrix, tensor.shape[0], stored_cols);
    std::vector<float> values(static_cast<std::size_t>(weight.rows * weight.cols));
    info_of(weight.format).widen(weight, {values.data(), weight.rows, weight.cols});
    tensors[matrix].assign(values.begin(), values.end());
  }
  return tensors;
}

void add_rows(const std::string& name, const PlainDecoder::Rows& rows, SafetensorsWriter& writer) {
  std::vector<float> values;
  for (const auto& row : rows) values.insert(values.end(), row.begin(), row.end());
  writer.add(name, "F32", {std::ssize(rows), std::ssize(rows[0])}, values);
}

// Writes goldens.safetensors. False where a decision is too close for float32.
bool write_goldens(const std::filesystem::path& directory, const nlohmann::json& config) {
  constexpr Index kPrompt = 45, kGreedy = 6;
  const PlainDecoder::Tensors tensors = tensors_of(directory);
  const PlainDecoder decoder(config, tensors);
  SafetensorsWriter writer;
  std::vector<std::int32_t> tokens = random_tokens(kPrompt, config["vocab_size"], 8);
  writer.add("text.input_ids", "I32", {kPrompt}, tokens);
  const PlainDecoder::Result result = decoder.forward(tokens);
  add_rows("text.logits", result.logits, writer);
  add_rows("text.logits_last3", {result.logits.end() - 3, result.logits.end()}, writer);
  for (const auto& [place, rows] : result.hidden) add_rows("text.hidden." + place, rows, writer);
  if (!result.mtp_logits.empty()) add_rows("text.mtp_logits", result.mtp_logits, writer);
  for (const auto& [layer, routing] : result.routing) {
    const std::string name = "text.router." + layer + ".";
    add_rows(name + "scores", routing.scores, writer);
    add_rows(name + "topk_weights", routing.weights, writer);
    std::vector<std::int32_t> experts;
    for (const auto& row : routing.experts) experts.insert(experts.end(), row.begin(), row.end());
    writer.add(name + "topk_indices", "I32",
               {std::ssize(routing.experts), std::ssize(routing.experts[0])}, experts);
  }
  double margin = result.margin;
  std::vector<double> logits = result.logits.back();
  for (Index i = 0; i < kGreedy; ++i) {
    const auto best = std::ranges::max_element(logits);
    tokens.push_back(static_cast<std::int32_t>(best - logits.begin()));
    const double largest = std::exchange(*best, -1e9);
    margin = std::min(margin, largest - *std::ranges::max_element(logits));
    const PlainDecoder::Result longer = decoder.forward(tokens);
    margin = std::min(margin, longer.margin);
    logits = longer.logits.back();
  }
  writer.add("text.greedy", "I32", {kGreedy},
             std::vector<std::int32_t>(tokens.begin() + kPrompt, tokens.end()));
  writer.write(directory / "goldens.safetensors");
  return margin > 2e-5;
}

struct Answer {
  int status;
  std::string out, err;
};

Answer conformance(const std::filesystem::path& directory) {
  std::ostringstream out, err;
  const std::vector<std::string> words = {directory.string(), "--tolerance", "2e-4"};
  const int status = conformance::run_command_line(words, out, err);
  return {status, out.str(), err.str()};
}

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Doubles one element of a tensor: adds 1 to the exponent of a float, whatever its width.
void double_weight(const std::filesystem::path& directory, const std::string& name) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string file = entry.path().filename().string();
    if (!file.ends_with(".safetensors") || file == "goldens.safetensors") continue;
    std::ptrdiff_t offset = 0;
    std::uint16_t exponent_step = 0, upper = 0;
    {
      const SafetensorsFile tensors(entry.path());
      if (!tensors.contains(name)) continue;
      const SafetensorsTensor& tensor = tensors.tensor(name);
      const auto width = tensor.dtype == SafetensorsDType::float32 ? 4 : 2;
      exponent_step = tensor.dtype == SafetensorsDType::float16 ? 0x400 : 0x80;
      const std::string bytes = read_bytes(entry.path());
      const std::string_view wanted(reinterpret_cast<const char*>(tensor.bytes.data()),
                                    tensor.bytes.size());
      offset = static_cast<std::ptrdiff_t>(bytes.find(wanted)) + width - 2;
      std::memcpy(&upper, bytes.data() + offset, sizeof(upper));
    }
    upper = static_cast<std::uint16_t>(upper + exponent_step);
    std::fstream stream(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(offset).write(reinterpret_cast<const char*>(&upper), sizeof(upper));
    return;
  }
  FAIL() << name << " is nowhere";
}

// Quantised with groups that do not divide their rows, saved, and loaded again: widths of 31, 23
// and 11 in groups of 8 and 32.
TEST(UnseenQuantisedModel, ConformsToGoldensOfItsDecodedWeights) {
  const TemporaryDirectory directory;
  const nlohmann::json config = unseen_models()[0].config;
  const QuantisationPolicy usual = default_policy(WeightFormat::int8);
  for (const WeightScheme& scheme :
       {WeightScheme{WeightFormat::int8, 1, 0}, WeightScheme{WeightFormat::int8, 1, 8},
        WeightScheme{WeightFormat::int4, 1, 32}, WeightScheme{WeightFormat::int4, 1, 8}}) {
    // kv_b_proj too: its heads of 14 rows are views that begin anywhere.
    const auto policy = [&](std::string_view name) {
      return usual(name) || name.ends_with("kv_b_proj.weight") ? std::optional(scheme)
                                                               : std::nullopt;
    };
    int compared = 0;
    for (std::uint64_t seed = 1; seed < 30 && compared < 1; ++seed) {
      const SyntheticCheckpoint files(config, seed);
      const auto saved = directory / (std::string(name_of(scheme.format)) +
                                      std::to_string(scheme.block_cols) + std::to_string(seed));
      save_checkpoint(quantise(Checkpoint(files.path()), policy), saved);
      if (!write_goldens(saved, config)) continue;
      ++compared;
      const Answer answer = conformance(saved);
      EXPECT_EQ(answer.status, 0) << answer.out << answer.err;
      double_weight(saved, "model.layers.2.mlp.experts.1.up_proj.weight_scale");
      EXPECT_EQ(conformance(saved).status, 1);
    }
    EXPECT_EQ(compared, 1) << "no seed without a close decision";
  }
}

class UnseenModel : public ::testing::TestWithParam<Unseen> {};

// Float32 rounding of logits around 10 after a few layers is far below the tolerance of the trained
// model's goldens, and a wrong weight far above it.
TEST_P(UnseenModel, ConformsToTheGoldensAndNotWithAnotherWeight) {
  const nlohmann::json& config = GetParam().config;
  int compared = 0;
  for (std::uint64_t seed = 1; seed < 30 && compared < 1; ++seed) {
    const SyntheticCheckpoint files(config, seed, GetParam().shards);
    if (!write_goldens(files.path(), config)) continue;
    ++compared;
    const Answer answer = conformance(files.path());
    EXPECT_EQ(answer.status, 0) << answer.out << answer.err;
    for (const char* line :
         {"logits", "logits_last3", "hidden.", "scores", "topk_indices", "topk_weights", "greedy"})
      EXPECT_NE(answer.out.find(line), std::string::npos) << line << " is not compared";
    const bool predicts =
        !config["num_nextn_predict_layers"].is_null() && config["num_nextn_predict_layers"] == 1;
    EXPECT_EQ(answer.out.find("mtp_logits") != std::string::npos, predicts);
    EXPECT_EQ(answer.out.find("greedy speculative") != std::string::npos, predicts);
    EXPECT_EQ(answer.err, "");

    double_weight(files.path(), "model.layers.2.mlp.gate.weight");
    const Answer wrong = conformance(files.path());
    EXPECT_EQ(wrong.status, 1) << wrong.out << wrong.err;
    EXPECT_NE(wrong.out.find("FAIL"), std::string::npos);
  }
  EXPECT_EQ(compared, 1) << "no seed without a close decision";
}

std::string case_name(const ::testing::TestParamInfo<Unseen>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Models, UnseenModel, ::testing::ValuesIn(unseen_models()), case_name);

}  // namespace
}  // namespace mla::test
