#ifndef MLA_MODEL_REFERENCE_DECODER_HPP_
#define MLA_MODEL_REFERENCE_DECODER_HPP_

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "mla/attention/reference.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/model_config.hpp"
#include "model/reference_router.hpp"

namespace mla::test {

/// A whole decoder in double, straight from a checkpoint's tensors: token by token through experts,
/// a whole sequence at a time through attention.
class ReferenceDecoder {
 public:
  using Matrix = reference::Matrix<double>;

  ReferenceDecoder(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  struct Result {
    Matrix logits;       // [tokens, vocab_size]
    Matrix predictions;  // [tokens - 1, vocab_size] by multi-token prediction; empty without
  };

  Result forward(std::span<const TokenId> tokens) {
    margin_ = 1e30;
    Matrix x = embed("model.embed_tokens", tokens);
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer) x = forward_layer(layer, x);
    const Matrix hidden = norm("model.norm", x);
    const bool tied = config_.tie_word_embeddings;
    Result result;
    result.logits =
        hidden *
        tensor((tied ? "model.embed_tokens" : "lm_head") + std::string(".weight")).transpose();
    if (config_.num_nextn_predict_layers > 0) result.predictions = predict(hidden, tokens);
    return result;
  }

  /// By how much the closest decision of all routers was taken.
  double margin() const noexcept { return margin_; }

 private:
  Matrix tensor(const std::string& name) const {
    const std::vector<Index>& shape = checkpoint_.tensor(name).shape;
    return reference::to_matrix<double>(shape.size() == 1
                                            ? checkpoint_.vector(name, shape[0])
                                            : checkpoint_.matrix(name, shape[0], shape[1]));
  }

  Matrix norm(const std::string& name, const Matrix& x) const {
    return reference::rms_norm<double>(x, tensor(name + ".weight").row(0), config_.rms_norm_eps);
  }

  Matrix embed(const std::string& name, std::span<const TokenId> tokens) const {
    const Matrix table = tensor(name + ".weight");
    Matrix x(std::ssize(tokens), table.cols());
    for (Index t = 0; t < x.rows(); ++t) x.row(t) = table.row(tokens[static_cast<std::size_t>(t)]);
    return x;
  }

  Matrix mlp(const std::string& name, const Matrix& x) const {
    const Matrix gate = x * tensor(name + ".gate_proj.weight").transpose();
    const Matrix up = x * tensor(name + ".up_proj.weight").transpose();
    const Matrix inner = gate.unaryExpr([](double g) { return g / (1.0 + std::exp(-g)); });
    return inner.cwiseProduct(up) * tensor(name + ".down_proj.weight").transpose();
  }

  Matrix experts(const std::string& name, const Matrix& x) {
    const Matrix logits = x * tensor(name + ".gate.weight").transpose();
    std::vector<double> bias;
    if (checkpoint_.contains(name + ".gate.e_score_correction_bias")) {
      const Matrix values = tensor(name + ".gate.e_score_correction_bias");
      bias.assign(values.data(), values.data() + values.size());
    }
    Matrix out = Matrix::Zero(x.rows(), x.cols());
    for (Index t = 0; t < x.rows(); ++t) {
      const ReferenceRouting routing = reference_routing(
          config_.experts, {logits.row(t).data(), logits.row(t).data() + logits.cols()}, bias);
      margin_ = std::min(margin_, routing.margin);
      for (const auto& [expert, weight] : routing.weights)
        out.row(t) += weight * mlp(name + ".experts." + std::to_string(expert), x.row(t));
    }
    if (config_.experts.n_shared_experts > 0) out += mlp(name + ".shared_experts", x);
    return out;
  }

  Matrix forward_layer(Index layer, const Matrix& x) {
    const std::string name = "model.layers." + std::to_string(layer);
    std::vector<Index> positions(static_cast<std::size_t>(x.rows()));
    std::iota(positions.begin(), positions.end(), Index{0});
    const AttentionWeights attention =
        load_attention_weights(checkpoint_, name + ".self_attn", config_.attention);
    const Matrix middle =
        x + reference::forward<double>(config_.attention, attention,
                                       norm(name + ".input_layernorm", x), positions)
                .output;
    const Matrix normalised = norm(name + ".post_attention_layernorm", middle);
    const bool dense = checkpoint_.contains(name + ".mlp.gate_proj.weight");
    return middle + (dense ? mlp(name + ".mlp", normalised) : experts(name + ".mlp", normalised));
  }

  Matrix predict(const Matrix& hidden, std::span<const TokenId> tokens) {
    const std::string name = "model.layers." + std::to_string(config_.num_hidden_layers);
    const bool own_embedding = checkpoint_.contains(name + ".embed_tokens.weight");
    const bool own_head = checkpoint_.contains(name + ".shared_head.head.weight");
    const Matrix next =
        embed(own_embedding ? name + ".embed_tokens" : "model.embed_tokens", tokens.subspan(1));
    Matrix both(next.rows(), 2 * next.cols());
    both << norm(name + ".enorm", next), norm(name + ".hnorm", hidden.topRows(next.rows()));
    const Matrix x = both * tensor(name + ".eh_proj.weight").transpose();
    const Matrix out =
        norm(name + ".shared_head.norm", forward_layer(config_.num_hidden_layers, x));
    return out *
           tensor(own_head ? name + ".shared_head.head.weight" : "lm_head.weight").transpose();
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  double margin_ = 0.0;
};

}  // namespace mla::test

#endif  // MLA_MODEL_REFERENCE_DECODER_HPP_
