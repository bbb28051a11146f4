#ifndef MLA_TESTS_CONFORMANCE_RANDOM_CASE_HPP_
#define MLA_TESTS_CONFORMANCE_RANDOM_CASE_HPP_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <list>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "conformance/editable_case.hpp"
#include "mla/attention/reference.hpp"
#include "mla/core/attention_config.hpp"
#include "support/random.hpp"

namespace mla::test {

/// Makes cases of any shape; the specification, in double, says what must come out.
class RandomCase {
 public:
  explicit RandomCase(std::uint64_t seed) : random_(seed) {
    case_.metadata = {{"case", "random_" + std::to_string(seed)}};
    sequences_ = between(1, 3);
    tokens_ = between(1, 10) == 1 ? between(65, 140) : between(1, 20);
  }

  /// Kind mla, in all that its config.json can say.
  EditableCase published() {
    AttentionConfig& c = config_;
    c.hidden_size = between(5, 80);
    c.num_attention_heads = between(1, 5);
    c.q_lora_rank = chance(3) ? 0 : between(4, 40);
    c.kv_lora_rank = between(3, 70);
    c.qk_nope_head_dim = between(1, 33);
    c.qk_rope_head_dim = 2 * between(1, 17);
    c.v_head_dim = between(1, 40);
    c.rope_theta = chance(2) ? 10000.0 : 500000.0;
    c.rope_interleave = !chance(3);
    const bool bias = chance(3);
    nlohmann::json json = {{"hidden_size", c.hidden_size},
                           {"num_attention_heads", c.num_attention_heads},
                           {"q_lora_rank", nullptr},
                           {"kv_lora_rank", c.kv_lora_rank},
                           {"qk_nope_head_dim", c.qk_nope_head_dim},
                           {"qk_rope_head_dim", c.qk_rope_head_dim},
                           {"v_head_dim", c.v_head_dim},
                           {"rope_theta", c.rope_theta},
                           {"rope_scaling", scaling()},
                           {"rope_interleave", c.rope_interleave},
                           {"attention_bias", bias},
                           {"rms_norm_eps", 1e-6}};
    if (c.q_lora_rank > 0) json["q_lora_rank"] = c.q_lora_rank;
    case_.metadata["kind"] = "mla";
    case_.metadata["config"] = json.dump();
    add_published_weights(bias);
    return finish();
  }

  /// Kind tutorial.
  EditableCase tutorial() {
    const Index heads = between(1, 5), width = between(1, 20);
    config_ = AttentionConfig::lesson(heads * width, heads, between(3, 40), between(3, 40),
                                      2 * between(1, 9));
    config_.rope_interleave = false;
    config_.kv_a_layernorm_eps = 1e-5;
    case_.metadata["kind"] = "tutorial";
    case_.metadata["config"] = nlohmann::json{
        {"n_embd", config_.hidden_size},
        {"n_head", heads},
        {"kv_lora_rank", config_.kv_lora_rank},
        {"q_lora_rank", config_.q_lora_rank},
        {"rope_dim", config_.qk_rope_head_dim},
        {"rope_theta", config_.rope_theta},
        {"rms_norm_eps", 1e-5}}.dump();
    add_tutorial_weights();
    return finish();
  }

 private:
  Index between(Index low, Index high) { return random_.integer(low, high); }
  bool chance(int one_in) { return between(1, one_in) == 1; }
  RowMajorMatrix random_values(Index rows, Index cols, double scale, double center = 0.0) {
    RowMajorMatrix values(rows, cols);
    for (Index i = 0; i < values.size(); ++i)
      values.data()[i] = static_cast<float>(center + scale * random_.unit());
    return values;
  }

  nlohmann::json scaling() {
    RopeScaling& s = config_.rope_scaling;
    switch (between(0, 2)) {
      case 0:
        return nullptr;
      case 1:
        s = {RopeScalingType::linear, 4.0};
        return {{"rope_type", "linear"}, {"factor", 4.0}};
      default:
        s = {RopeScalingType::yarn,
             static_cast<double>(between(1, 64)),
             between(8, 5000),
             32.0,
             1.0,
             0.25 * static_cast<double>(between(0, 6)),
             0.25 * static_cast<double>(between(0, 6))};
        return {{"type", "yarn"},
                {"factor", s.factor},
                {"original_max_position_embeddings", s.original_max_position_embeddings},
                {"beta_fast", 32},
                {"beta_slow", 1},
                {"mscale", s.mscale},
                {"mscale_all_dim", s.mscale_all_dim}};
    }
  }

  WeightView add(const std::string& name, const std::vector<Index>& shape, RowMajorMatrix values) {
    const RowMajorMatrix& kept = kept_.emplace_back(std::move(values));
    case_.add(name, shape, kept);
    return {kept.data(), kept.rows(), kept.cols()};
  }
  WeightView projection(const std::string& name, Index rows, Index cols, double gain = 1.0) {
    return add(name + ".weight", {rows, cols},
               random_values(rows, cols, gain / std::sqrt(static_cast<double>(cols))));
  }
  WeightView norm(const std::string& name, Index size) {
    return add(name + ".weight", {size}, random_values(1, size, 0.3, 1.0));
  }
  WeightView bias(const std::string& name, Index size) {
    return add(name + ".bias", {size}, random_values(1, size, 0.5));
  }

  void add_published_weights(bool biased) {
    const AttentionConfig& c = config_;
    const Index heads = c.num_attention_heads, rank = c.kv_lora_rank;
    if (c.q_lora_rank == 0) {
      weights_.q_proj = projection("q_proj", heads * c.qk_head_dim(), c.hidden_size, 3.0);
    } else {
      weights_.q_a_proj = projection("q_a_proj", c.q_lora_rank, c.hidden_size);
      weights_.q_a_layernorm = norm("q_a_layernorm", c.q_lora_rank);
      weights_.q_b_proj = projection("q_b_proj", heads * c.qk_head_dim(), c.q_lora_rank, 3.0);
    }
    weights_.kv_a_proj_with_mqa =
        projection("kv_a_proj_with_mqa", c.cache_row_width(), c.hidden_size);
    weights_.kv_a_layernorm = norm("kv_a_layernorm", rank);
    weights_.kv_b_proj = projection("kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), rank);
    weights_.o_proj = projection("o_proj", c.hidden_size, heads * c.v_head_dim);
    if (!biased) return;
    if (c.q_lora_rank > 0) weights_.q_a_proj_bias = bias("q_a_proj", c.q_lora_rank);
    weights_.kv_a_proj_with_mqa_bias = bias("kv_a_proj_with_mqa", c.cache_row_width());
    weights_.o_proj_bias = bias("o_proj", c.hidden_size);
  }

  void add_tutorial_weights() {
    const AttentionConfig& c = config_;
    const Index heads = c.num_attention_heads;
    weights_.q_a_proj = projection("q_proj", c.q_lora_rank, c.hidden_size);
    weights_.q_b_nope_proj =
        projection("q_decompress", heads * c.qk_nope_head_dim, c.q_lora_rank, 3.0);
    weights_.q_b_rope_proj =
        projection("q_rope_proj", heads * c.qk_rope_head_dim, c.q_lora_rank, 3.0);
    weights_.kv_a_proj = projection("kv_proj", c.kv_lora_rank, c.hidden_size);
    weights_.kv_a_layernorm = norm("kv_norm", c.kv_lora_rank);
    weights_.k_rope_proj = projection("k_rope_proj", c.rope_key_width(), c.hidden_size);
    weights_.k_b_proj = projection("k_decompress", heads * c.qk_nope_head_dim, c.kv_lora_rank);
    weights_.v_b_proj = projection("v_decompress", heads * c.v_head_dim, c.kv_lora_rank);
    weights_.o_proj = projection("o_proj", c.hidden_size, heads * c.v_head_dim);
    if (chance(2)) weights_.o_proj_bias = bias("o_proj", c.hidden_size);
  }

  // Positions with gaps, or none given; those of padding are nonsense.
  std::vector<Index> positions(const std::vector<std::uint8_t>& mask) {
    std::vector<Index> result;
    const bool given = chance(2);
    for (Index s = 0; s < sequences_; ++s) {
      Index position = given ? between(0, 6000) : 0;
      for (Index t = 0; t < tokens_; ++t) {
        result.push_back(position);
        position += given && chance(4) ? between(1, 3000) : 1;
      }
    }
    if (!given) return result;
    RowMajorMatrix stored(sequences_, tokens_);
    for (Index i = 0; i < stored.size(); ++i) {
      const auto row = static_cast<std::size_t>(i);
      stored.data()[i] = mask.empty() || mask[row] ? static_cast<float>(result[row]) : 1.0f;
    }
    case_.add("position_ids", {sequences_, tokens_}, stored);
    return result;
  }

  std::vector<std::uint8_t> attention_mask() {
    std::vector<std::uint8_t> mask;
    if (!chance(2)) return mask;
    RowMajorMatrix stored(sequences_, tokens_);
    for (Index i = 0; i < stored.size(); ++i) {
      mask.push_back(chance(3) ? 0 : 1);
      stored.data()[i] = static_cast<float>(mask.back());
    }
    case_.add("attention_mask", {sequences_, tokens_}, stored);
    return mask;
  }

  void add_calls() {
    if (chance(3)) return;
    nlohmann::json calls = nlohmann::json::array();
    for (Index left = tokens_; left > 0; left -= calls.back().get<Index>())
      calls.push_back(between(1, left));
    case_.metadata["calls"] = calls.dump();
  }

  // Input and expected results. Padding holds what must not be looked at.
  EditableCase finish() {
    const Index rows = sequences_ * tokens_, hidden = config_.hidden_size;
    RowMajorMatrix x = random_values(rows, hidden, 1.0);
    const std::vector<std::uint8_t> mask = attention_mask();
    const std::vector<Index> position_ids = positions(mask);
    add_calls();
    RowMajorMatrix output(rows, hidden), latent(rows, config_.kv_lora_rank),
        k_pe(rows, config_.rope_key_width());
    for (Index s = 0; s < sequences_; ++s) {
      const Index first = s * tokens_;
      const auto part = [&](const auto& all) {
        const auto from = static_cast<std::size_t>(first), n = static_cast<std::size_t>(tokens_);
        return all.empty() ? std::span(all) : std::span(all).subspan(from, n);
      };
      const auto exact =
          reference::forward<double>(config_, weights_, x.middleRows(first, tokens_).cast<double>(),
                                     part(position_ids), {.keep = part(mask)});
      output.middleRows(first, tokens_) = exact.output.cast<float>();
      latent.middleRows(first, tokens_) = exact.latent.cast<float>();
      k_pe.middleRows(first, tokens_) = exact.rope_key.cast<float>();
    }
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    for (std::size_t row = 0; row < mask.size(); ++row)
      if (!mask[row])
        for (RowMajorMatrix* values : {&x, &output, &latent, &k_pe})
          values->row(static_cast<Index>(row)).setConstant(kNaN);
    case_.add("hidden_states", {sequences_, tokens_, hidden}, x);
    case_.add("latent", {sequences_, tokens_, config_.kv_lora_rank}, latent);
    case_.add("k_pe", {sequences_, tokens_, config_.rope_key_width()}, k_pe);
    case_.add("output", {sequences_, tokens_, hidden}, output);
    return case_;
  }

  Random random_;
  Index sequences_ = 1;
  Index tokens_ = 1;
  AttentionConfig config_;
  AttentionWeights weights_;
  std::list<RowMajorMatrix> kept_;  // what weights_ points to
  EditableCase case_;
};

}  // namespace mla::test

#endif  // MLA_TESTS_CONFORMANCE_RANDOM_CASE_HPP_
