#ifndef MLA_MODEL_SYNTHETIC_CHECKPOINT_HPP_
#define MLA_MODEL_SYNTHETIC_CHECKPOINT_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/random.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {

/// One tensor of a checkpoint with random elements.
struct SyntheticTensor {
  std::string name;
  std::vector<Index> shape;
  double scale;
  double center = 0.0;
};

/// The config.json of a small DeepSeek-V3 whose dims are multiples of nothing. Layer 0 is dense.
inline nlohmann::json synthetic_config() {
  return nlohmann::json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 37, "hidden_size": 22, "intermediate_size": 35, "num_hidden_layers": 3,
    "num_attention_heads": 3, "q_lora_rank": 13, "kv_lora_rank": 17, "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6, "v_head_dim": 5, "rope_theta": 10000, "rope_scaling": null,
    "attention_bias": false, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 200, "tie_word_embeddings": false, "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 6,
    "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 9, "n_group": 3,
    "topk_group": 2, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": true, "routed_scaling_factor": 1.7, "bos_token_id": 0, "eos_token_id": 1})");
}

/// DeepSeek-V2: softmax, no bias, no multi-token prediction, scaling in place of normalisation.
inline nlohmann::json synthetic_v2_config(const char* topk_method) {
  nlohmann::json config = synthetic_config();
  config.update({{"architectures", {"DeepseekV2ForCausalLM"}},
                 {"model_type", "deepseek_v2"},
                 {"scoring_func", "softmax"},
                 {"topk_method", topk_method},
                 {"norm_topk_prob", false},
                 {"routed_scaling_factor", 4.0},
                 {"num_nextn_predict_layers", nullptr}});
  return config;
}

namespace detail {

inline void add_mlp(const std::string& name, Index hidden, Index intermediate,
                    std::vector<SyntheticTensor>& tensors) {
  const double scale = 1.5 / std::sqrt(static_cast<double>(hidden));
  for (const char* projection : {"gate_proj", "up_proj"})
    tensors.push_back({name + projection + std::string(".weight"), {intermediate, hidden}, scale});
  tensors.push_back({name + "down_proj.weight", {hidden, intermediate}, scale});
}

inline void add_layer(const nlohmann::json& c, Index layer, std::vector<SyntheticTensor>& tensors) {
  const std::string name = "model.layers." + std::to_string(layer) + ".";
  const auto size = [&](const char* key) { return c.at(key).get<Index>(); };
  const Index hidden = size("hidden_size"), heads = size("num_attention_heads");
  const Index nope = size("qk_nope_head_dim"), rope = size("qk_rope_head_dim");
  const Index rank = size("kv_lora_rank"), v = size("v_head_dim");
  const auto norm = [&](const std::string& norm_name, Index width) {
    tensors.push_back({name + norm_name + ".weight", {width}, 0.3, 1.0});
  };
  const auto projection = [&](const std::string& module, Index rows, Index cols) {
    tensors.push_back(
        {name + module + ".weight", {rows, cols}, 1.5 / std::sqrt(static_cast<double>(cols))});
    const bool biased = module == "self_attn.q_a_proj" || module == "self_attn.o_proj" ||
                        module == "self_attn.kv_a_proj_with_mqa";
    if (biased && c.value("attention_bias", false))
      tensors.push_back({name + module + ".bias", {rows}, 0.3});
  };
  norm("input_layernorm", hidden);
  if (c.at("q_lora_rank").is_null()) {
    projection("self_attn.q_proj", heads * (nope + rope), hidden);
  } else {
    projection("self_attn.q_a_proj", size("q_lora_rank"), hidden);
    norm("self_attn.q_a_layernorm", size("q_lora_rank"));
    projection("self_attn.q_b_proj", heads * (nope + rope), size("q_lora_rank"));
  }
  projection("self_attn.kv_a_proj_with_mqa", rank + rope, hidden);
  norm("self_attn.kv_a_layernorm", rank);
  projection("self_attn.kv_b_proj", heads * (nope + v), rank);
  projection("self_attn.o_proj", hidden, heads * v);
  norm("post_attention_layernorm", hidden);
  const bool has_experts =
      c.contains("n_routed_experts") && !c["n_routed_experts"].is_null() &&
      layer >= size("first_k_dense_replace") && layer % size("moe_layer_freq") == 0 &&
      !(layer == size("num_hidden_layers") && c.at("model_type") == "joyai_llm_flash");
  if (!has_experts) return add_mlp(name + "mlp.", hidden, size("intermediate_size"), tensors);
  if (c.at("model_type") == "axk1") norm("post_mlp_layernorm", hidden);
  projection("mlp.gate", size("n_routed_experts"), hidden);
  if (c["topk_method"] == "noaux_tc")  // below 0 as often as not
    tensors.push_back(
        {name + "mlp.gate.e_score_correction_bias", {size("n_routed_experts")}, 0.3, -0.5});
  for (Index e = 0; e < size("n_routed_experts"); ++e)
    add_mlp(name + "mlp.experts." + std::to_string(e) + ".", hidden, size("moe_intermediate_size"),
            tensors);
  if (!c["n_shared_experts"].is_null())
    add_mlp(name + "mlp.shared_experts.", hidden,
            size("n_shared_experts") * size("moe_intermediate_size"), tensors);
}

}  // namespace detail

/// The tensors that a checkpoint of this configuration has, by their published names.
inline std::vector<SyntheticTensor> synthetic_tensors(const nlohmann::json& c) {
  std::vector<SyntheticTensor> tensors;
  const Index hidden = c["hidden_size"], vocab = c["vocab_size"], layers = c["num_hidden_layers"];
  tensors.push_back({"model.embed_tokens.weight", {vocab, hidden}, 1.0});
  for (Index layer = 0; layer < layers; ++layer) detail::add_layer(c, layer, tensors);
  tensors.push_back({"model.norm.weight", {hidden}, 0.3, 1.0});
  const double head_scale = 2.0 / std::sqrt(static_cast<double>(hidden));
  if (!c["tie_word_embeddings"].get<bool>())
    tensors.push_back({"lm_head.weight", {vocab, hidden}, head_scale});
  if (c["num_nextn_predict_layers"].is_null() || c["num_nextn_predict_layers"] == 0) return tensors;
  const std::string name = "model.layers." + std::to_string(layers) + ".";
  tensors.push_back({name + "embed_tokens.weight", {vocab, hidden}, 1.0});
  tensors.push_back({name + "enorm.weight", {hidden}, 0.3, 1.0});
  tensors.push_back({name + "hnorm.weight", {hidden}, 0.3, 1.0});
  tensors.push_back({name + "eh_proj.weight", {hidden, 2 * hidden}, head_scale});
  detail::add_layer(c, layers, tensors);
  tensors.push_back({name + "shared_head.norm.weight", {hidden}, 0.3, 1.0});
  tensors.push_back({name + "shared_head.head.weight", {vocab, hidden}, head_scale});
  return tensors;
}

/// A model directory with random weights: matrices of all three storage types, vectors of float32.
class SyntheticCheckpoint {
 public:
  explicit SyntheticCheckpoint(const nlohmann::json& config, std::uint64_t seed = 1,
                               std::size_t shards = 1)
      : SyntheticCheckpoint(config, synthetic_tensors(config), seed, shards) {}
  SyntheticCheckpoint(const nlohmann::json& config, const std::vector<SyntheticTensor>& tensors,
                      std::uint64_t seed = 1, std::size_t shards = 1) {
    Random random(seed);
    std::vector<SafetensorsWriter> writers(shards);
    std::map<std::string, std::string> places;
    const auto file = [&](std::size_t shard) {
      return shards == 1 ? "model.safetensors" : "shard-" + std::to_string(shard) + ".safetensors";
    };
    for (const SyntheticTensor& tensor : tensors) {
      const std::size_t shard = places.size() % shards;  // neighbours in different files
      SafetensorsWriter& writer = writers[shard];
      places[tensor.name] = file(shard);
      Index count = 1;
      for (const Index dim : tensor.shape) count *= dim;
      const Index kind = tensor.shape.size() == 1 ? 0 : random.integer(0, 2);
      if (kind == 0)
        writer.add(tensor.name, "F32", tensor.shape, elements<float>(tensor, count, random));
      else if (kind == 1)
        writer.add(tensor.name, "BF16", tensor.shape, elements<bfloat16>(tensor, count, random));
      else
        writer.add(tensor.name, "F16", tensor.shape, elements<float16>(tensor, count, random));
    }
    for (std::size_t shard = 0; shard < shards; ++shard)
      writers[shard].write(directory_ / file(shard));
    if (shards > 1)
      write_file(directory_ / "model.safetensors.index.json",
                 nlohmann::json({{"weight_map", places}}).dump());
    write_file(directory_ / "config.json", config.dump());
  }

  const std::filesystem::path& path() const noexcept { return directory_.path(); }

 private:
  template <class T>
  static std::vector<T> elements(const SyntheticTensor& tensor, Index count, Random& random) {
    return random_elements<T>(count, random, tensor.scale, tensor.center);
  }

  TemporaryDirectory directory_;
};

/// Any tokens of a vocabulary.
inline std::vector<std::int32_t> random_tokens(Index count, Index vocab_size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> tokens;
  for (Index t = 0; t < count; ++t)
    tokens.push_back(static_cast<std::int32_t>(random.integer(0, vocab_size - 1)));
  return tokens;
}

}  // namespace mla::test

#endif  // MLA_MODEL_SYNTHETIC_CHECKPOINT_HPP_
