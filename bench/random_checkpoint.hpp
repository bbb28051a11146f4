#ifndef MLA_BENCH_RANDOM_CHECKPOINT_HPP_
#define MLA_BENCH_RANDOM_CHECKPOINT_HPP_

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "mla/io/replacement_file.hpp"
#include "mla/io/safetensors_writer.hpp"
#include "random_weights.hpp"

namespace mla::bench {

/// A model's dims: a decoder of the DeepSeek-V2 architecture.
struct ModelDims {
  const char* name;
  AttentionConfig attention;
  Index vocab_size;
  Index intermediate_size;  ///< of layers without experts
  Index experts;            ///< 0: no layer has any
  Index chosen;             ///< per token
  Index shared;
  Index expert_intermediate_size;
  Index first_layers_dense;
  Index layers;
};

/// A checkpoint of random weights in a folder of its own, which goes with the object. Matrices are
/// in `format` as published models have them: in the quantised ones kv_b_proj, router and embedding
/// are bfloat16, the head too, but in int8 and int4, where it is int8.
class RandomCheckpoint {
 public:
  RandomCheckpoint(const ModelDims& dims, WeightFormat format, const std::filesystem::path& folder)
      : dims_(dims), format_(format), folder_(folder) {
    std::filesystem::create_directories(folder);
    add_model();
    write_tensors();
    std::ofstream(folder_ / "config.json") << config().dump(2);
  }
  ~RandomCheckpoint() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  RandomCheckpoint(const RandomCheckpoint&) = delete;
  RandomCheckpoint& operator=(const RandomCheckpoint&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  double bytes() const { return static_cast<double>(file_bytes_); }

  /// Weights that one token is multiplied by, without the head, and those of the head.
  double elements_of_token() const {
    return always_.elements - head_.elements +
           static_cast<double>(expert_layers_ * dims_.chosen) * expert_.elements;
  }
  double elements_of_head() const { return head_.elements; }

  /// What `tokens` tokens of one call read, codes and scales: each expert that one of them takes
  /// once, where all experts are equally likely.
  double bytes_of(double tokens) const {
    const double all = static_cast<double>(dims_.experts);
    if (dims_.experts == 0) return always_.bytes;
    const double unused = 1.0 - static_cast<double>(dims_.chosen) / all;
    return always_.bytes + static_cast<double>(expert_layers_) * all *
                               (1.0 - std::pow(unused, tokens)) * expert_.bytes;
  }

 private:
  struct Tensor {
    SafetensorsSource source;
    std::function<void(std::span<std::byte>)> fill;
  };
  struct Work {
    double elements = 0.0, bytes = 0.0;
    void add(double more_elements, double more_bytes) {
      elements += more_elements;
      bytes += more_bytes;
    }
  };

  void add(const std::string& name, SafetensorsDType dtype, std::vector<Index> shape,
           std::function<void(std::span<std::byte>)> fill) {
    tensors_.push_back({{name, dtype, std::move(shape)}, std::move(fill)});
  }
  static Index bytes_of(const SafetensorsSource& source) {
    Index bytes = mla::bytes_of(source.dtype);
    for (const Index dim : source.shape) bytes *= dim;
    return bytes;
  }

  void add_matrix(const std::string& module, WeightFormat format, Index rows, Index cols,
                  Work* work) {
    const std::string name = module + ".weight";
    const float scale = std::sqrt(3.0f / static_cast<float>(cols));
    const std::size_t first = tensors_.size();
    const auto fill = [=](std::span<std::byte> bytes) { fill_weights(format, bytes, scale); };
    const auto scales = published_scales(format, cols);
    const Index groups = (cols + scales.block_cols - 1) / scales.block_cols;
    const auto fill_scales = [=](std::span<std::byte> bytes) {
      const auto values = equal_scales(format, scales.format,
                                       std::ssize(bytes) / mla::bytes_of(scales.format), scale);
      std::copy(values.begin(), values.end(), bytes.begin());
    };
    switch (format) {
      case WeightFormat::float32:
        add(name, SafetensorsDType::float32, {rows, cols}, fill);
        break;
      case WeightFormat::bfloat16:
        add(name, SafetensorsDType::bfloat16, {rows, cols}, fill);
        break;
      case WeightFormat::float16:
        add(name, SafetensorsDType::float16, {rows, cols}, fill);
        break;
      case WeightFormat::fp8_e4m3:
        add(name, SafetensorsDType::float8_e4m3, {rows, cols}, fill);
        add(name + "_scale_inv", SafetensorsDType::float32, {(rows + 127) / 128, groups},
            fill_scales);
        break;
      case WeightFormat::int8:
        add(name, SafetensorsDType::int8, {rows, cols}, fill);
        add(name + "_scale", SafetensorsDType::float32, {rows, groups}, fill_scales);
        break;
      case WeightFormat::int4:
        add(name + "_packed", SafetensorsDType::int32, {rows, (cols + 7) / 8}, fill);
        add(name + "_scale", SafetensorsDType::bfloat16, {rows, groups}, fill_scales);
        break;
      case WeightFormat::fp4_e2m1:
        add(name + "_packed", SafetensorsDType::uint8, {rows, (cols + 1) / 2}, fill);
        add(name + "_scale", SafetensorsDType::uint8, {rows, groups}, fill_scales);
        break;
    }
    double bytes = 0.0;
    for (std::size_t i = first; i < tensors_.size(); ++i)
      bytes += static_cast<double>(bytes_of(tensors_[i].source));
    if (work) work->add(static_cast<double>(rows * cols), bytes);
    if (format == WeightFormat::int4)
      add(name + "_shape", SafetensorsDType::int32, {2}, [=](std::span<std::byte> out) {
        const std::int32_t shape[] = {static_cast<std::int32_t>(rows),
                                      static_cast<std::int32_t>(cols)};
        std::memcpy(out.data(), shape, sizeof(shape));
      });
  }
  void add_norm(const std::string& module, Index size) {
    add(module + ".weight", SafetensorsDType::float32, {size}, [](std::span<std::byte> bytes) {
      const std::vector<float> ones(bytes.size() / sizeof(float), 1.0f);
      std::memcpy(bytes.data(), ones.data(), bytes.size());
    });
  }

  bool quantised() const { return info_of(format_).scaled; }
  WeightFormat wide() const { return quantised() ? WeightFormat::bfloat16 : format_; }
  WeightFormat head() const {
    const bool at_load = format_ == WeightFormat::int8 || format_ == WeightFormat::int4;
    return at_load ? WeightFormat::int8 : wide();
  }

  void add_mlp(const std::string& name, Index intermediate, Work& work) {
    const Index hidden = dims_.attention.hidden_size;
    add_matrix(name + ".gate_proj", format_, intermediate, hidden, &work);
    add_matrix(name + ".up_proj", format_, intermediate, hidden, &work);
    add_matrix(name + ".down_proj", format_, hidden, intermediate, &work);
  }

  void add_layer(Index layer) {
    const AttentionConfig& c = dims_.attention;
    const Index heads = c.num_attention_heads;
    const std::string name = "model.layers." + std::to_string(layer),
                      attention = name + ".self_attn.";
    add_norm(name + ".input_layernorm", c.hidden_size);
    add_norm(name + ".post_attention_layernorm", c.hidden_size);
    if (c.q_lora_rank == 0) {
      add_matrix(attention + "q_proj", format_, heads * c.qk_head_dim(), c.hidden_size, &always_);
    } else {
      add_matrix(attention + "q_a_proj", format_, c.q_lora_rank, c.hidden_size, &always_);
      add_norm(attention + "q_a_layernorm", c.q_lora_rank);
      add_matrix(attention + "q_b_proj", format_, heads * c.qk_head_dim(), c.q_lora_rank, &always_);
    }
    add_matrix(attention + "kv_a_proj_with_mqa", format_, c.cache_row_width(), c.hidden_size,
               &always_);
    add_norm(attention + "kv_a_layernorm", c.kv_lora_rank);
    add_matrix(attention + "kv_b_proj", wide(), heads * (c.qk_nope_head_dim + c.v_head_dim),
               c.kv_lora_rank, &always_);
    add_matrix(attention + "o_proj", format_, c.hidden_size, heads * c.v_head_dim, &always_);
    if (dims_.experts == 0 || layer < dims_.first_layers_dense)
      return add_mlp(name + ".mlp", dims_.intermediate_size, always_);
    add_matrix(name + ".mlp.gate", wide(), dims_.experts, c.hidden_size, &always_);
    for (Index e = 0; e < dims_.experts; ++e) {
      expert_ = {};
      add_mlp(name + ".mlp.experts." + std::to_string(e), dims_.expert_intermediate_size, expert_);
    }
    ++expert_layers_;
    add_mlp(name + ".mlp.shared_experts", dims_.shared * dims_.expert_intermediate_size, always_);
  }

  void add_model() {
    const Index hidden = dims_.attention.hidden_size;
    add_matrix("model.embed_tokens", wide(), dims_.vocab_size, hidden, nullptr);
    for (Index layer = 0; layer < dims_.layers; ++layer) add_layer(layer);
    add_norm("model.norm", hidden);
    add_matrix("lm_head", head(), dims_.vocab_size, hidden, &head_);
    always_.add(head_.elements, head_.bytes);
  }

  // Large elements first, so that all are aligned.
  void write_tensors() {
    std::ranges::stable_sort(tensors_, std::greater(), [](const Tensor& tensor) {
      return mla::bytes_of(tensor.source.dtype);
    });
    std::vector<SafetensorsSource> sources;
    for (const Tensor& tensor : tensors_) sources.push_back(tensor.source);
    ReplacementFile file(folder_ / "model.safetensors");
    const std::string header = safetensors_header(sources, {});
    file.write(std::as_bytes(std::span(header)));
    file_bytes_ = std::ssize(header);
    for (const Tensor& tensor : tensors_) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(bytes_of(tensor.source)));
      tensor.fill(bytes);
      file.write(bytes);
      file_bytes_ += std::ssize(bytes);
    }
    file.commit();
  }

  nlohmann::json config() const {
    const AttentionConfig& c = dims_.attention;
    nlohmann::json json = {{"model_type", "deepseek_v2"},
                           {"architectures", {"DeepseekV2ForCausalLM"}},
                           {"vocab_size", dims_.vocab_size},
                           {"hidden_size", c.hidden_size},
                           {"intermediate_size", dims_.intermediate_size},
                           {"num_hidden_layers", dims_.layers},
                           {"num_attention_heads", c.num_attention_heads},
                           {"q_lora_rank", nullptr},
                           {"kv_lora_rank", c.kv_lora_rank},
                           {"qk_nope_head_dim", c.qk_nope_head_dim},
                           {"qk_rope_head_dim", c.qk_rope_head_dim},
                           {"v_head_dim", c.v_head_dim},
                           {"rope_theta", 10000},
                           {"rope_scaling", nullptr},
                           {"attention_bias", false},
                           {"hidden_act", "silu"},
                           {"rms_norm_eps", 1e-6},
                           {"max_position_embeddings", 163840},
                           {"tie_word_embeddings", false},
                           {"n_routed_experts", nullptr},
                           {"bos_token_id", 0},
                           {"eos_token_id", 1}};
    if (c.q_lora_rank > 0) json["q_lora_rank"] = c.q_lora_rank;
    if (dims_.experts > 0)
      json.update({{"n_routed_experts", dims_.experts},
                   {"num_experts_per_tok", dims_.chosen},
                   {"n_shared_experts", dims_.shared},
                   {"moe_intermediate_size", dims_.expert_intermediate_size},
                   {"first_k_dense_replace", dims_.first_layers_dense},
                   {"moe_layer_freq", 1},
                   {"n_group", 1},
                   {"topk_group", 1},
                   {"scoring_func", "softmax"},
                   {"topk_method", "greedy"},
                   {"norm_topk_prob", false},
                   {"routed_scaling_factor", 1.0}});
    if (quantised()) json["quantization_config"] = quantization();
    return json;
  }

  nlohmann::json quantization() const {
    if (format_ == WeightFormat::fp8_e4m3)
      return {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
    const auto group = [](const char* format, const char* type, int bits, const char* strategy,
                          nlohmann::json size) {
      return nlohmann::json{{"format", format},
                            {"targets", {"Linear"}},
                            {"weights",
                             {{"num_bits", bits},
                              {"type", type},
                              {"symmetric", true},
                              {"strategy", strategy},
                              {"group_size", std::move(size)}}}};
    };
    const auto int8 = group("int-quantized", "int", 8, "channel", nullptr);
    nlohmann::json groups = {{"group_0", int8}};
    if (format_ == WeightFormat::int4)
      groups["group_1"] = group("pack-quantized", "int", 4, "group", 32);
    if (format_ == WeightFormat::fp4_e2m1)
      groups["group_0"] = group("mxfp4-pack-quantized", "float", 4, "group", 32);
    return {{"quant_method", "compressed-tensors"},
            {"format", "mixed-precision"},
            {"config_groups", std::move(groups)}};
  }

  ModelDims dims_;
  WeightFormat format_;
  std::filesystem::path folder_;
  std::vector<Tensor> tensors_;
  Work always_, expert_, head_;
  Index expert_layers_ = 0, file_bytes_ = 0;
};

}  // namespace mla::bench

#endif  // MLA_BENCH_RANDOM_CHECKPOINT_HPP_
