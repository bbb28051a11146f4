#ifndef MLA_ATTENTION_RANDOM_LAYER_CASE_HPP_
#define MLA_ATTENTION_RANDOM_LAYER_CASE_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <ostream>

#include "support/isas.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {

/// All that is random of a layer and its prompt but the numbers themselves.
struct RandomLayerCase {
  std::uint64_t seed = 0;
  AttentionConfig config;
  WeightOptions weights;
  CacheFormat cache = CacheFormat::float32;
  simd::Isa isa = simd::Isa::scalar;
  Index tokens = 1;
  Index first_position = 0;
  Index largest_gap = 1;
  Index threads = 1;
  bool padded = false;
};

inline std::ostream& operator<<(std::ostream& text, const RandomLayerCase& c) {
  return text << describe(c.config) << " weights "
              << (c.weights.mixed_formats ? "mixed" : name_of(c.weights.format)) << " split "
              << c.weights.split << " biases " << c.weights.biases << " cache " << name_of(c.cache)
              << " isa " << simd::name_of(c.isa) << " tokens " << c.tokens << " first_position "
              << c.first_position << " largest_gap " << c.largest_gap << " threads " << c.threads
              << " padded " << c.padded;
}

// What DeepSeek does not have.
inline void add_terms_of_other_families(Random& random, AttentionConfig& c) {
  if (random.chance(0.15)) c.kv_latent_scale = random.uniform(0.3, 4.0);
  if (random.chance(0.15) && c.q_lora_rank > 0 && c.query_norm)
    c.q_latent_scale = random.uniform(0.3, 4.0);
  if (random.chance(0.15)) {
    c.query_temperature_beta = random.uniform(0.0, 0.2);
    c.query_temperature_length = random.integer(1, 100);
  }
  if (random.chance(0.15)) {
    LongropeFactors factors;
    for (Index pair = 0; pair < c.qk_rope_head_dim / 2; ++pair) {
      factors.short_factor.push_back(random.uniform(1.0, 3.0));
      factors.long_factor.push_back(random.uniform(1.0, 20.0));
    }
    c.rope_scaling.type = RopeScalingType::longrope;
    c.rope_scaling.longrope = std::make_shared<const LongropeFactors>(factors);
    c.rope_scaling.long_context = random.chance(0.5);
  }
}

inline AttentionConfig random_config(Random& random) {
  AttentionConfig c;
  const Index most = random.chance(0.1) ? 3 : 70;  // every dim tiny, or not
  c.hidden_size = random.integer(1, most);
  c.num_attention_heads = random.chance(0.1) ? random.integer(10, 130) : random.integer(1, 9);
  c.q_lora_rank = random.chance(0.3) ? 0 : random.integer(1, most);
  c.kv_lora_rank = random.integer(1, most);
  c.qk_nope_head_dim = random.integer(1, std::min<Index>(most, 40));
  c.qk_rope_head_dim = 2 * random.integer(1, std::min<Index>(most, 17));
  c.v_head_dim = random.integer(1, std::min<Index>(most, 40));
  c.query_norm = random.chance(0.7);
  c.rope_key_per_head = random.chance(0.3);
  if (random.chance(0.1)) {  // one of them as large as a model's
    Index* const dims[] = {&c.hidden_size,      &c.q_lora_rank, &c.kv_lora_rank,
                           &c.qk_nope_head_dim, &c.v_head_dim,  &c.qk_rope_head_dim};
    *dims[random.bits() % 6] = 2 * random.integer(36, 300);
    c.num_attention_heads = random.integer(1, 4);
  }
  if (random.chance(0.1)) {  // the lesson's layer
    c.hidden_size = c.num_attention_heads * c.qk_nope_head_dim;
    c.v_head_dim = c.qk_nope_head_dim;
    c.query_norm = c.rope_interleave = false;
    c.rope_key_per_head = true;
  } else {
    c.rope_interleave = random.chance(0.5);
  }
  c.rope_theta = random.one_of({10.0, 500.0, 10000.0, 8e6});
  c.q_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.1});
  c.kv_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.1});
  c.rope_scaling.type =
      random.one_of({RopeScalingType::none, RopeScalingType::linear, RopeScalingType::ntk,
                     RopeScalingType::yarn, RopeScalingType::yarn});
  c.rope_scaling.factor = random.uniform(1.0, 50.0);
  c.rope_scaling.original_max_position_embeddings = random.integer(4, 4096);
  c.rope_scaling.beta_slow = random.uniform(0.5, 2.0);
  c.rope_scaling.beta_fast = c.rope_scaling.beta_slow + random.uniform(0.0, 40.0);
  c.rope_scaling.mscale = random.uniform(0.0, 1.0);
  c.rope_scaling.mscale_all_dim = random.uniform(0.0, 1.0);
  add_terms_of_other_families(random, c);
  return c;
}

// Multiplications of decompressed attention, token by token: most of what a case costs.
inline double work_of(const RandomLayerCase& c) {
  const auto tokens = static_cast<double>(c.tokens);
  return tokens * tokens / 2.0 * static_cast<double>(c.config.num_attention_heads) *
         static_cast<double>(c.config.kv_lora_rank *
                             (c.config.qk_nope_head_dim + c.config.v_head_dim));
}

inline RandomLayerCase random_case(std::uint64_t seed) {
  Random random(seed);
  RandomLayerCase c;
  c.seed = seed;
  c.config = random_config(random);
  c.weights.mixed_formats = random.chance(0.5);
  c.weights.format =
      random.one_of({WeightFormat::float32, WeightFormat::bfloat16, WeightFormat::float16});
  c.weights.split = random.chance(0.3);
  c.weights.biases = !c.weights.split && random.chance(0.3);
  c.cache = random.one_of(
      {CacheFormat::float32, CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::float16});
  c.isa = supported_isas()[seed % supported_isas().size()];  // in turn
  c.tokens = random.chance(0.1) ? random.integer(129, 330) : random.integer(1, 70);
  if (random.chance(0.01)) {  // more than a part of 1024 keys
    c.tokens = random.integer(1020, 1090);
    c.config.num_attention_heads = random.integer(1, 3);
    c.config.kv_lora_rank = random.integer(1, 20);
    c.config.qk_nope_head_dim = c.config.v_head_dim = random.integer(1, 9);
  }
  while (work_of(c) > 1e9) c.tokens /= 2;
  c.first_position = random.one_of({Index{0}, Index{0}, Index{4000}, Index{2'000'000}});
  c.largest_gap = random.one_of({1, 3, 100});
  c.threads = random.integer(1, 4);
  c.padded = random.chance(0.4);
  return c;
}

}  // namespace mla::test

#endif  // MLA_ATTENTION_RANDOM_LAYER_CASE_HPP_
