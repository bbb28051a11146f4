#ifndef MLA_MODEL_FAMILIES_MINICPM3_HPP_
#define MLA_MODEL_FAMILIES_MINICPM3_HPP_

#include <algorithm>
#include <cmath>
#include <string_view>

#include "mla/model/families/family.hpp"

// MiniCPM3: half-split rotary pairs, LongRoPE, and three scales: of embeddings (scale_emb), of what
// a layer adds (scale_depth / sqrt(layers)) and of logits (dim_model_base / hidden_size). The
// published file has no v_head_dim, rope_theta and tie_word_embeddings.

namespace mla::families {

inline constexpr std::string_view kMiniCpm3Keys[] = {
    "rope_parameters", "num_hidden_layers", "hidden_act",     "intermediate_size",
    "scale_emb",       "scale_depth",       "dim_model_base", "qk_head_dim"};

inline AttentionConfig read_minicpm3_attention(const ConfigReader& config) {
  AttentionConfig attention = read_attention_dims(config);
  if (!config.find("v_head_dim") && attention.num_attention_heads > 0 &&
      attention.hidden_size % attention.num_attention_heads != 0)
    config.fail("v_head_dim is missing, and hidden_size ", attention.hidden_size,
                " is no multiple of num_attention_heads ", attention.num_attention_heads);
  attention.v_head_dim =
      config.find("v_head_dim")
          ? config.size("v_head_dim")
          : attention.hidden_size / std::max<Index>(1, attention.num_attention_heads);
  attention.rope_interleave = false;
  const RopeDialect dialect = {.longrope = true};
  if (config.find("rope_theta") || config.find("rope_parameters")) {
    read_rope(config, attention, dialect);
  } else {
    attention.rope_theta = 10000.0;
    if (config.find("rope_scaling"))
      attention.rope_scaling = read_rope_scaling(config, config.object("rope_scaling"), dialect);
  }
  config.expect("qk_head_dim", static_cast<double>(attention.qk_head_dim()));
  return attention;
}

inline void read_minicpm3(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model);
  model.tie_word_embeddings = config.boolean("tie_word_embeddings", true);
  model.embedding_scale = config.number("scale_emb", 1.0);
  if (config.find("scale_depth"))
    model.residual_scale =
        config.number("scale_depth") /
        std::sqrt(static_cast<double>(std::max<Index>(1, model.num_hidden_layers)));
  if (config.find("dim_model_base"))
    model.logit_scale = static_cast<double>(config.size("dim_model_base")) /
                        static_cast<double>(std::max<Index>(1, model.hidden_size()));
}

inline constexpr std::string_view kMiniCpm3Types[] = {"minicpm3"};
inline constexpr std::string_view kMiniCpm3Architectures[] = {"MiniCPM3ForCausalLM"};
inline constexpr Family kMiniCpm3 = {.model_types = kMiniCpm3Types,
                                     .architectures = kMiniCpm3Architectures,
                                     .keys = kMiniCpm3Keys,
                                     .read_attention = &read_minicpm3_attention,
                                     .read_model = &read_minicpm3};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_MINICPM3_HPP_
