#ifndef MLA_EXAMPLES_CONFORMANCE_CASE_WEIGHTS_HPP_
#define MLA_EXAMPLES_CONFORMANCE_CASE_WEIGHTS_HPP_

#include <algorithm>
#include <list>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "case_config.hpp"
#include "case_file.hpp"

#include "mla/attention/attention_weights.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"

namespace mla::conformance {

/// The weights of a case, as they are stored or rounded to bfloat16.
class CaseWeights {
 public:
  /// `format` is float32 (as stored) or bfloat16. A tensor named `prefix` + name, where there is
  /// one, takes the place of name. `file` must outlive the object.
  CaseWeights(const CaseFile& file, const AttentionConfig& config, WeightFormat format,
              std::string prefix)
      : file_(file), format_(format), prefix_(std::move(prefix)) {
    if (config.rope_key_per_head)
      load_tutorial(config);
    else
      load_published(config);
    views_.validate(config);
  }

  const AttentionWeights& views() const noexcept { return views_; }
  /// Names of the tensors that were used.
  const std::set<std::string>& names() const noexcept { return names_; }
  /// Whether rounding changed any number.
  bool rounded() const noexcept { return rounded_; }

  /// Some matrix is in bfloat16.
  bool bfloat16_products() const noexcept { return bfloat16_products_; }

 private:
  void load_published(const AttentionConfig& c) {
    const Index heads = c.num_attention_heads, rank = c.kv_lora_rank;
    const Index queries = heads * c.qk_head_dim();
    const bool bias = has_attention_bias(file_);
    if (c.q_lora_rank == 0) {
      views_.q_proj = matrix("q_proj", queries, c.hidden_size);
    } else {
      views_.q_a_proj = matrix("q_a_proj", c.q_lora_rank, c.hidden_size);
      views_.q_a_layernorm = vector("q_a_layernorm.weight", c.q_lora_rank);
      views_.q_b_proj = matrix("q_b_proj", queries, c.q_lora_rank);
      if (bias) views_.q_a_proj_bias = vector("q_a_proj.bias", c.q_lora_rank);
    }
    views_.kv_a_proj_with_mqa = matrix("kv_a_proj_with_mqa", c.cache_row_width(), c.hidden_size);
    views_.kv_a_layernorm = vector("kv_a_layernorm.weight", rank);
    views_.kv_b_proj = matrix("kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), rank);
    views_.o_proj = matrix("o_proj", c.hidden_size, heads * c.v_head_dim);
    if (!bias) return;
    views_.kv_a_proj_with_mqa_bias = vector("kv_a_proj_with_mqa.bias", c.cache_row_width());
    views_.o_proj_bias = vector("o_proj.bias", c.hidden_size);
  }

  void load_tutorial(const AttentionConfig& c) {
    const Index heads = c.num_attention_heads, rope = heads * c.qk_rope_head_dim;
    views_.q_a_proj = matrix("q_proj", c.q_lora_rank, c.hidden_size);
    views_.q_b_nope_proj = matrix("q_decompress", heads * c.qk_nope_head_dim, c.q_lora_rank);
    views_.q_b_rope_proj = matrix("q_rope_proj", rope, c.q_lora_rank);
    views_.kv_a_proj = matrix("kv_proj", c.kv_lora_rank, c.hidden_size);
    views_.kv_a_layernorm = vector("kv_norm.weight", c.kv_lora_rank);
    views_.k_rope_proj = matrix("k_rope_proj", rope, c.hidden_size);
    views_.k_b_proj = matrix("k_decompress", heads * c.qk_nope_head_dim, c.kv_lora_rank);
    views_.v_b_proj = matrix("v_decompress", heads * c.v_head_dim, c.kv_lora_rank);
    views_.o_proj = matrix("o_proj", c.hidden_size, heads * c.v_head_dim);
    if (file_.contains("o_proj.bias")) views_.o_proj_bias = vector("o_proj.bias", c.hidden_size);
  }

  WeightView matrix(const std::string& name, Index rows, Index cols) {
    const WeightView weight = view(name + ".weight", {rows, cols}, rows, cols);
    bfloat16_products_ = bfloat16_products_ || weight.format == WeightFormat::bfloat16;
    return weight;
  }
  WeightView vector(const std::string& name, Index size) { return view(name, {size}, 1, size); }

  WeightView view(const std::string& name, const std::vector<Index>& shape, Index rows,
                  Index cols) {
    names_.insert(name);
    const bool replaced = !prefix_.empty() && file_.contains(prefix_ + name);
    const std::string& full_name = *names_.insert(replaced ? prefix_ + name : name).first;
    const WeightView values = file_.tensor(full_name, shape).values;
    const bool as_stored =
        format_ == WeightFormat::float32 || values.format == WeightFormat::bfloat16;
    return {as_stored ? values.data : round(values),
            as_stored ? values.format : WeightFormat::bfloat16, rows, cols};
  }

  const bfloat16* round(const WeightView& values) {
    const std::vector<float> exact = to_float_vector(values);
    const auto& copy = copies_.emplace_back(exact.size());
    std::ranges::transform(exact, copy.begin(), [&](float value) {
      const bfloat16 nearest(value);
      rounded_ = rounded_ || static_cast<float>(nearest) != value;
      return nearest;
    });
    return copy.data();
  }

  const CaseFile& file_;
  WeightFormat format_;
  std::string prefix_;
  AttentionWeights views_;
  std::set<std::string> names_;
  std::list<AlignedBuffer<bfloat16>> copies_;
  bool rounded_ = false;
  bool bfloat16_products_ = false;
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_CASE_WEIGHTS_HPP_
