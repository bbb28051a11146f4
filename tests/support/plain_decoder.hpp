#ifndef MLA_SUPPORT_PLAIN_DECODER_HPP_
#define MLA_SUPPORT_PLAIN_DECODER_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

namespace mla::test {

/// A decoder of DeepSeek-V2, V3, Kimi K2, A.X-K1 and JoyAI in loops over doubles, after the
/// published modelling code, straight from config.json and the tensors by their names. It shares
/// nothing with the library: no configuration, no rotary tables, no router, no attention.
class PlainDecoder {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;
  using Tensors = std::map<std::string, Row>;

  /// `tensors` are flat, row by row; both must outlive the decoder.
  PlainDecoder(const nlohmann::json& config, const Tensors& tensors) : c_(config), w_(tensors) {}

  struct Routing {
    Rows scores;                            // [tokens, n_routed_experts]
    std::vector<std::vector<int>> experts;  // [tokens, num_experts_per_tok]
    Rows weights;
  };
  struct Result {
    std::map<std::string, Rows> hidden;      // embed, layer0, ..., norm
    std::map<std::string, Routing> routing;  // layer1, ...
    Rows logits;
    Rows mtp_logits;      // [tokens - 1], empty without the module
    double margin = 1e9;  // of the closest decision of a router
  };

  Result forward(const std::vector<std::int32_t>& tokens) const {
    Result result;
    Rows x = embed("model.embed_tokens", tokens, 0);
    result.hidden["embed"] = x;
    const int layers = c_["num_hidden_layers"];
    for (int layer = 0; layer < layers; ++layer) forward_layer(layer, x, result);
    for (Row& row : x) row = norm(row, "model.norm", c_["rms_norm_eps"]);
    result.hidden["norm"] = x;
    const bool tied = c_.value("tie_word_embeddings", false);
    for (const Row& row : x)
      result.logits.push_back(project(row, tied ? "model.embed_tokens" : "lm_head"));
    if (size("num_nextn_predict_layers") > 0) predict(tokens, x, result);
    return result;
  }

 private:
  int size(const char* key) const { return c_[key].is_null() ? 0 : c_[key].get<int>(); }
  const Row& tensor(const std::string& module) const { return w_.at(module + ".weight"); }

  Row project(const Row& x, const std::string& module) const {
    const Row& w = tensor(module);
    Row y(w.size() / x.size(), 0.0);
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
    return y;
  }

  Row norm(const Row& x, const std::string& module, double eps) const {
    const Row& w = tensor(module);
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    Row y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      y[i] = x[i] / std::sqrt(sum / static_cast<double>(x.size()) + eps) * w[i];
    return y;
  }

  static void add(const Row& part, double factor, Row& x) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += factor * part[i];
  }

  Rows embed(const std::string& module, const std::vector<std::int32_t>& tokens, int first) const {
    const Row& table = tensor(module);
    const auto hidden = static_cast<std::ptrdiff_t>(size("hidden_size"));
    Rows x;
    for (std::size_t t = static_cast<std::size_t>(first); t < tokens.size(); ++t)
      x.emplace_back(table.begin() + tokens[t] * hidden, table.begin() + (tokens[t] + 1) * hidden);
    return x;
  }

  static double mscale(double factor, double m) {
    return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0;
  }
  const nlohmann::json* yarn() const {
    return c_["rope_scaling"].is_null() ? nullptr : &c_["rope_scaling"];
  }

  // DeepseekV3YarnRotaryEmbedding, and the plain one.
  double frequency(int pair) const {
    const double dim = size("qk_rope_head_dim"), base = c_["rope_theta"];
    const double extra = std::pow(base, -2.0 * pair / dim);
    if (!yarn()) return extra;
    const double original = (*yarn())["original_max_position_embeddings"];
    const auto dimension = [&](double rotations) {
      return dim * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
             (2.0 * std::log(base));
    };
    const double low = std::max(std::floor(dimension((*yarn())["beta_fast"])), 0.0);
    double high = std::min(std::ceil(dimension((*yarn())["beta_slow"])), dim - 1.0);
    if (low == high) high += 0.001;
    const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
    return extra / static_cast<double>((*yarn())["factor"]) * ramp + extra * (1.0 - ramp);
  }

  void rotate(double* x, std::size_t position) const {
    double scale = 1.0;
    if (yarn())
      scale = mscale((*yarn())["factor"], (*yarn())["mscale"]) /
              mscale((*yarn())["factor"], (*yarn())["mscale_all_dim"]);
    for (int i = 0; i < size("qk_rope_head_dim") / 2; ++i) {
      const double angle = static_cast<double>(position) * frequency(i);
      const double cos = scale * std::cos(angle), sin = scale * std::sin(angle);
      const double a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos - b * sin;
      x[2 * i + 1] = a * sin + b * cos;
    }
  }

  double softmax_scale() const {
    const double scale = 1.0 / std::sqrt(size("qk_nope_head_dim") + size("qk_rope_head_dim"));
    if (!yarn()) return scale;
    const double m = mscale((*yarn())["factor"], (*yarn())["mscale_all_dim"]);
    return scale * m * m;
  }

  // Keys and values of every head, causal softmax.
  Rows attention(const std::string& name, const Rows& x) const {
    const auto heads = static_cast<std::size_t>(size("num_attention_heads"));
    const auto nope = static_cast<std::size_t>(size("qk_nope_head_dim"));
    const auto rope = static_cast<std::size_t>(size("qk_rope_head_dim"));
    const auto rank = static_cast<std::size_t>(size("kv_lora_rank"));
    const auto v = static_cast<std::size_t>(size("v_head_dim"));
    Rows queries, keys_values, rope_keys, out;
    for (std::size_t t = 0; t < x.size(); ++t) {
      queries.push_back(
          c_["q_lora_rank"].is_null()
              ? project(x[t], name + ".q_proj")
              : project(norm(project(x[t], name + ".q_a_proj"), name + ".q_a_layernorm", 1e-6),
                        name + ".q_b_proj"));
      for (std::size_t h = 0; h < heads; ++h)
        rotate(queries[t].data() + h * (nope + rope) + nope, t);
      Row compressed = project(x[t], name + ".kv_a_proj_with_mqa");
      rope_keys.emplace_back(compressed.begin() + static_cast<std::ptrdiff_t>(rank),
                             compressed.end());
      rotate(rope_keys[t].data(), t);
      compressed.resize(rank);
      keys_values.push_back(
          project(norm(compressed, name + ".kv_a_layernorm", 1e-6), name + ".kv_b_proj"));

      Row values(heads * v, 0.0);
      for (std::size_t h = 0; h < heads; ++h) {
        const double* q = queries[t].data() + h * (nope + rope);
        Row probability(t + 1);
        double sum = 0.0;
        for (std::size_t s = 0; s <= t; ++s) {
          const double* k = keys_values[s].data() + h * (nope + v);
          double score = 0.0;
          for (std::size_t i = 0; i < nope; ++i) score += q[i] * k[i];
          for (std::size_t i = 0; i < rope; ++i) score += q[nope + i] * rope_keys[s][i];
          sum += probability[s] = std::exp(score * softmax_scale());
        }
        for (std::size_t s = 0; s <= t; ++s)
          for (std::size_t i = 0; i < v; ++i)
            values[h * v + i] += probability[s] / sum * keys_values[s][h * (nope + v) + nope + i];
      }
      out.push_back(project(values, name + ".o_proj"));
    }
    return out;
  }

  Row mlp(const std::string& name, const Row& x) const {
    Row gate = project(x, name + ".gate_proj");
    const Row up = project(x, name + ".up_proj");
    for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
    return project(gate, name + ".down_proj");
  }

  // Best first; lowers `margin` to the distance of what is in to what is out.
  static std::vector<int> best(const Row& values, int count, double& margin) {
    std::vector<std::pair<double, int>> sorted;
    for (std::size_t i = 0; i < values.size(); ++i)
      sorted.emplace_back(-values[i], static_cast<int>(i));
    std::ranges::sort(sorted);
    const auto n = static_cast<std::size_t>(count);
    if (n < sorted.size()) margin = std::min(margin, sorted[n].first - sorted[n - 1].first);
    std::vector<int> places;
    for (std::size_t i = 0; i < n; ++i) places.push_back(sorted[i].second);
    return places;
  }

  // MoEGate of both generations, and the experts.
  Row experts(const std::string& name, const Row& x, Routing& routing, double& margin) const {
    Row scores = project(x, name + ".gate");
    double sum = 0.0;
    for (double& score : scores)
      sum += score =
          c_["scoring_func"] == "sigmoid" ? 1.0 / (1.0 + std::exp(-score)) : std::exp(score);
    if (c_["scoring_func"] == "softmax")
      for (double& score : scores) score /= sum;
    const bool biased = c_["topk_method"] == "noaux_tc";
    Row choice = scores;
    if (biased)
      for (std::size_t e = 0; e < choice.size(); ++e)
        choice[e] += w_.at(name + ".gate.e_score_correction_bias")[e];
    if (c_["topk_method"] != "greedy") {
      const auto groups = static_cast<std::size_t>(size("n_group"));
      const std::size_t each = choice.size() / groups;
      Row group_scores;
      for (std::size_t g = 0; g < groups; ++g) {
        Row group(choice.begin() + static_cast<std::ptrdiff_t>(g * each),
                  choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * each));
        std::ranges::sort(group, std::greater{});
        group_scores.push_back(biased ? group.at(0) + group.at(1) : group.at(0));
      }
      const std::vector<int> in = best(group_scores, size("topk_group"), margin);
      for (std::size_t e = 0; e < choice.size(); ++e)
        if (std::ranges::count(in, static_cast<int>(e / each)) == 0) choice[e] = -1e9;
    }
    const std::vector<int> chosen = best(choice, size("num_experts_per_tok"), margin);
    Row weights;
    for (const int e : chosen) weights.push_back(scores[static_cast<std::size_t>(e)]);
    double total = 0.0;
    for (const double weight : weights) total += weight;
    const bool normalise = c_["norm_topk_prob"];
    for (double& weight : weights) {
      if (normalise) weight /= total;
      if (c_["model_type"] != "deepseek_v2" || !normalise)
        weight *= c_["routed_scaling_factor"].get<double>();
    }
    Row out(x.size(), 0.0);
    for (std::size_t k = 0; k < chosen.size(); ++k)
      add(mlp(name + ".experts." + std::to_string(chosen[k]), x), weights[k], out);
    if (size("n_shared_experts") > 0) add(mlp(name + ".shared_experts", x), 1.0, out);
    routing.scores.push_back(scores);
    routing.experts.push_back(chosen);
    routing.weights.push_back(weights);
    return out;
  }

  void forward_layer(int layer, Rows& x, Result& result) const {
    const std::string number = std::to_string(layer), name = "model.layers." + number;
    const double eps = c_["rms_norm_eps"];
    Rows normalised;
    for (const Row& row : x) normalised.push_back(norm(row, name + ".input_layernorm", eps));
    const Rows attended = attention(name + ".self_attn", normalised);
    // JoyAI: the layer of multi-token prediction is dense.
    const bool prediction = layer == c_["num_hidden_layers"].get<int>();
    const bool sparse = size("n_routed_experts") > 0 && layer >= size("first_k_dense_replace") &&
                        layer % size("moe_layer_freq") == 0 &&
                        !(prediction && c_["model_type"] == "joyai_llm_flash");
    for (std::size_t t = 0; t < x.size(); ++t) {
      add(attended[t], 1.0, x[t]);
      const Row row = norm(x[t], name + ".post_attention_layernorm", eps);
      Row part = sparse
                     ? experts(name + ".mlp", row, result.routing["layer" + number], result.margin)
                     : mlp(name + ".mlp", row);
      if (sparse && c_["model_type"] == "axk1")
        part = norm(part, name + ".post_mlp_layernorm", eps);
      add(part, 1.0, x[t]);
    }
    result.hidden["layer" + number] = x;
  }

  void predict(const std::vector<std::int32_t>& tokens, const Rows& states, Result& result) const {
    const int layer = c_["num_hidden_layers"];
    const std::string name = "model.layers." + std::to_string(layer);
    const double eps = c_["rms_norm_eps"];
    Rows x;
    for (const Row& embedding : embed(name + ".embed_tokens", tokens, 1)) {
      Row both = norm(embedding, name + ".enorm", eps);
      const Row state = norm(states[x.size()], name + ".hnorm", eps);
      both.insert(both.end(), state.begin(), state.end());
      x.push_back(project(both, name + ".eh_proj"));
    }
    forward_layer(layer, x, result);
    for (const Row& row : x)
      result.mtp_logits.push_back(
          project(norm(row, name + ".shared_head.norm", eps), name + ".shared_head.head"));
  }

  const nlohmann::json& c_;
  const Tensors& w_;
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_PLAIN_DECODER_HPP_
