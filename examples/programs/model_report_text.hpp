#ifndef MLA_EXAMPLES_PROGRAMS_MODEL_REPORT_TEXT_HPP_
#define MLA_EXAMPLES_PROGRAMS_MODEL_REPORT_TEXT_HPP_

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "printable.hpp"

#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/model_report.hpp"

namespace mla::programs {

/// What mla-inspect has found besides the model: about its texts.
struct TextReport {
  std::string tokenizer;      ///< "1024 tokens", or why there is none
  std::string chat_template;  ///< "yes", "none", or why it is refused
};

/// "688.6 GB", by powers of 1000.
inline std::string size_text(Index bytes) {
  constexpr const char* kUnits[] = {"bytes", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1000.0 && unit < 4; ++unit) value /= 1000.0;
  char text[40];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

/// "671.0 B" of parameters, by powers of 1000.
inline std::string count_text(Index count) {
  constexpr const char* kUnits[] = {"", " K", " M", " B", " T"};
  double value = static_cast<double>(count);
  int unit = 0;
  for (; value >= 1000.0 && unit < 4; ++unit) value /= 1000.0;
  char text[40];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f%s" : "%.1f%s", value, kUnits[unit]);
  return text;
}

namespace detail {

/// "fp8_e4m3 with a scale per 128 x 128"
inline std::string scheme_text(const WeightScheme& scheme) {
  const auto size = [](Index block, const char* all) {
    return block == 0 ? std::string(all) : std::to_string(block);
  };
  return std::string(name_of(scheme.format)) + " with a scale per " +
         size(scheme.block_rows, "all rows") + " x " + size(scheme.block_cols, "all columns") +
         (scheme.zero_points ? " and zero points" : "");
}

/// Bytes and numbers of all tensors of a format.
struct FormatTotal {
  std::string format;
  Index count = 0, elements = 0, bytes = 0;
};

inline std::vector<FormatTotal> totals_of(const ModelReport& report) {
  std::map<std::string, FormatTotal> totals;
  for (const TensorGroup& group : report.tensors) {
    FormatTotal& total = totals[group.format];
    total.format = group.format;
    total.count += group.count;
    total.elements += group.elements;
    total.bytes += group.bytes;
  }
  std::vector<FormatTotal> result;
  result.reserve(totals.size());
  for (auto& [format, total] : totals) result.push_back(std::move(total));
  std::ranges::sort(result, std::ranges::greater(), &FormatTotal::bytes);
  return result;
}

/// Lines of a report: a name, and what there is of it.
class ReportLines {
 public:
  void add(std::string_view name, const std::string& value) {
    std::string line(name);
    line.resize(std::max<std::size_t>(line.size() + 1, 16), ' ');
    text_ += line + printable(value) + "\n";
  }
  template <class... Values>
  void row(const char* format, const Values&... values) {
    char line[400];
    std::snprintf(line, sizeof(line), format, values...);
    text_ += printable(line) + "\n";
  }
  void blank() { text_ += "\n"; }
  const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
};

inline std::string layers_text(const ModelConfig& config, bool has_prediction) {
  std::string text = std::to_string(config.num_hidden_layers);
  Index dense = 0;
  for (Index layer = 0; layer < config.num_hidden_layers; ++layer)
    dense += !config.has_experts(layer);
  if (config.experts.n_routed_experts > 0)
    text += ", " + std::to_string(dense) + " without experts";
  if (config.shortcut_experts) text += ", of two attentions each";
  if (has_prediction) text += "; a module for multi-token prediction";
  return text;
}

inline std::string attention_text(const AttentionConfig& config) {
  const auto number = [](Index value) { return std::to_string(value); };
  return number(config.num_attention_heads) + " heads; keys of " + number(config.qk_nope_head_dim) +
         " + " + number(config.qk_rope_head_dim) + ", values of " + number(config.v_head_dim) +
         "; kv_lora_rank " + number(config.kv_lora_rank) +
         (config.q_lora_rank > 0 ? ", q_lora_rank " + number(config.q_lora_rank) : "");
}

inline std::string experts_text(const MixtureOfExpertsConfig& config) {
  const auto number = [](Index value) { return std::to_string(value); };
  if (config.n_routed_experts == 0) return "none";
  return number(config.num_experts_per_tok) + " of " + number(config.n_routed_experts) +
         (config.zero_experts > 0 ? " + " + number(config.zero_experts) + " without weights" : "") +
         " per token, " + number(config.n_shared_experts) + " shared, of " +
         number(config.moe_intermediate_size);
}

inline void add_dims(const ModelReport& report, ReportLines& lines) {
  if (!report.config) return;
  const ModelConfig& config = *report.config;
  lines.add("layers", layers_text(config, report.has_prediction));
  lines.add("hidden size", std::to_string(config.hidden_size()) + ", MLP " +
                               std::to_string(config.intermediate_size) + ", vocabulary " +
                               std::to_string(config.vocab_size));
  lines.add("attention", attention_text(config.attention));
  lines.add("experts", experts_text(config.experts));
  lines.add("context", std::to_string(config.max_position_embeddings) + " tokens");
}

inline void add_weights(const ModelReport& report, bool all, ReportLines& lines) {
  if (report.tensors.empty()) return;
  lines.add("weights", size_text(report.weight_bytes()) + ", " + count_text(report.parameters()) +
                           " parameters");
  for (const WeightScheme& scheme : report.schemes) lines.add("", scheme_text(scheme));
  lines.blank();
  lines.row("%-16s%10s%14s%12s", "  format", "tensors", "parameters", "bytes");
  for (const FormatTotal& total : totals_of(report))
    lines.row("  %-14s%10td%14s%12s", total.format.c_str(), total.count,
              count_text(total.elements).c_str(), size_text(total.bytes).c_str());
  if (!all) return;
  lines.blank();
  lines.row("  %-64s%-10s%9s%12s", "tensor", "format", "tensors", "bytes");
  for (const TensorGroup& group : report.tensors)
    lines.row("  %-64s%-10s%9td%12s", group.name.c_str(), group.format.c_str(), group.count,
              size_text(group.bytes).c_str());
}

inline void add_caches(const ModelReport& report, Index tokens, ReportLines& lines) {
  if (report.caches.empty()) return;
  const std::string context = std::to_string(tokens) + " tokens";
  lines.blank();
  lines.row("%-16s%12s%10s%14s%8s%16s%16s", "cache", "MLA/token", "module", "MHA/token", "times",
            context.c_str(), "with weights");
  for (const CacheCost& cost : report.caches) {
    const Index bytes = (cost.bytes + cost.prediction_bytes) * tokens;
    lines.row("  %-14s%12td%10td%14td%8.1f%16s%16s", std::string(name_of(cost.format)).c_str(),
              cost.bytes, cost.prediction_bytes, cost.multi_head_bytes,
              static_cast<double>(cost.multi_head_bytes) / static_cast<double>(cost.bytes),
              size_text(bytes).c_str(), size_text(bytes + report.weight_bytes()).c_str());
  }
}

}  // namespace detail

/// The report for people, of a context of `tokens` tokens. `all`: with a line for each group of
/// tensors.
inline std::string text_of(const ModelReport& report, const TextReport& texts, Index tokens,
                           bool all) {
  detail::ReportLines lines;
  std::string architectures;
  for (const std::string& name : report.architectures)
    architectures += (architectures.empty() ? " (" : ", ") + name;
  if (!architectures.empty()) architectures += ")";
  lines.add("model", report.directory);
  std::string family = report.model_type;
  if (family.empty()) family = report.config ? report.config->model_type : "unknown";
  lines.add("family", family + architectures);
  if (report.runs()) lines.add("runs", "yes");
  for (const std::string& reason : report.refusals) lines.add("refused", reason);
  detail::add_dims(report, lines);
  lines.add("tokenizer", texts.tokenizer);
  lines.add("chat template", texts.chat_template);
  detail::add_weights(report, all, lines);
  detail::add_caches(report, tokens, lines);
  return lines.text();
}

/// The report for programs. Sizes are in bytes.
inline nlohmann::ordered_json json_of(const ModelReport& report, const TextReport& texts,
                                      Index tokens) {
  nlohmann::ordered_json json = {{"directory", printable(report.directory)},
                                 {"model_type", report.model_type},
                                 {"architectures", report.architectures},
                                 {"runs", report.runs()}};
  json["refusals"] = nlohmann::ordered_json::array();
  for (const std::string& reason : report.refusals) json["refusals"].push_back(printable(reason));
  if (report.config) {
    const ModelConfig& config = *report.config;
    const AttentionConfig& attention = config.attention;
    json["config"] = {{"num_hidden_layers", config.num_hidden_layers},
                      {"hidden_size", config.hidden_size()},
                      {"intermediate_size", config.intermediate_size},
                      {"vocab_size", config.vocab_size},
                      {"num_attention_heads", attention.num_attention_heads},
                      {"q_lora_rank", attention.q_lora_rank},
                      {"kv_lora_rank", attention.kv_lora_rank},
                      {"qk_nope_head_dim", attention.qk_nope_head_dim},
                      {"qk_rope_head_dim", attention.qk_rope_head_dim},
                      {"v_head_dim", attention.v_head_dim},
                      {"n_routed_experts", config.experts.n_routed_experts},
                      {"num_experts_per_tok", config.experts.num_experts_per_tok},
                      {"n_shared_experts", config.experts.n_shared_experts},
                      {"moe_intermediate_size", config.experts.moe_intermediate_size},
                      {"max_position_embeddings", config.max_position_embeddings},
                      {"multi_token_prediction", report.has_prediction}};
    if (config.experts.n_routed_experts == 0)
      for (const char* key : {"num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"})
        json["config"].erase(key);
  }
  json["tokenizer"] = printable(texts.tokenizer);
  json["chat_template"] = printable(texts.chat_template);
  json["parameters"] = report.parameters();
  json["weight_bytes"] = report.weight_bytes();
  json["tensors"] = nlohmann::ordered_json::array();
  for (const TensorGroup& group : report.tensors)
    json["tensors"].push_back({{"name", printable(group.name)},
                               {"format", group.format},
                               {"count", group.count},
                               {"elements", group.elements},
                               {"bytes", group.bytes}});
  json["context"] = tokens;
  json["caches"] = nlohmann::ordered_json::array();
  for (const CacheCost& cost : report.caches)
    json["caches"].push_back(
        {{"format", name_of(cost.format)},
         {"bytes_per_token", cost.bytes},
         {"prediction_bytes_per_token", cost.prediction_bytes},
         {"multi_head_bytes_per_token", cost.multi_head_bytes},
         {"context_bytes", (cost.bytes + cost.prediction_bytes) * tokens},
         {"memory_bytes", (cost.bytes + cost.prediction_bytes) * tokens + report.weight_bytes()}});
  return json;
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_MODEL_REPORT_TEXT_HPP_
