#ifndef MLA_EXAMPLES_CONFORMANCE_ATTENTION_CASE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_ATTENTION_CASE_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "case_config.hpp"
#include "case_file.hpp"
#include "case_weights.hpp"

#include "mla/attention/reference.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"

namespace mla::conformance {

/// What a layer makes of all tokens of all sequences. Rows of padding mean nothing.
struct LayerResult {
  RowMajorMatrix output;  ///< [sequences * tokens, hidden_size]
  RowMajorMatrix latent;  ///< [sequences * tokens, kv_lora_rank] as cached
  RowMajorMatrix k_pe;    ///< [sequences * tokens, rope_key_width] as cached

  LayerResult() = default;
  LayerResult(const AttentionConfig& config, Index rows)
      : output(RowMajorMatrix::Zero(rows, config.hidden_size)),
        latent(RowMajorMatrix::Zero(rows, config.kv_lora_rank)),
        k_pe(RowMajorMatrix::Zero(rows, config.rope_key_width())) {}
};

/// A layer, its input and what must come of it. The file must outlive it.
struct AttentionCase {
  AttentionCase(const AttentionConfig& layer, Index sequence_count, Index token_count)
      : config(layer), sequences(sequence_count), tokens(token_count) {}

  AttentionConfig config;
  std::string prefix;  ///< "", or "half_split." for the second layer of mla_rope_pair
  std::unique_ptr<CaseWeights> weights;
  Index sequences;
  Index tokens;                              ///< of each sequence, padding included
  std::vector<Index> calls;                  ///< tokens of each call
  RowMajorMatrix hidden_states;              ///< [sequences * tokens, hidden_size]
  std::vector<Index> position_ids;           ///< [sequences * tokens]; empty: the library's own
  std::vector<std::uint8_t> attention_mask;  ///< [sequences * tokens]; empty: no padding
  Index first_output = 0;                    ///< tokens of each sequence whose output is known:
  Index last_output = 0;                     ///< [first_output, last_output)
  LayerResult expected;

  Index rows() const noexcept { return sequences * tokens; }
  /// [sequences * tokens] position_ids, or 0, 1, 2, ... for each sequence.
  std::vector<Index> explicit_positions() const {
    std::vector<Index> positions = position_ids;
    if (positions.empty())
      for (Index row = 0; row < rows(); ++row) positions.push_back(row % tokens);
    return positions;
  }
  bool is_token(Index row) const noexcept {
    return attention_mask.empty() || attention_mask[static_cast<std::size_t>(row)] != 0;
  }
  bool has_output(Index row) const noexcept {
    const Index token = row % tokens;
    return is_token(row) && first_output <= token && token < last_output;
  }
};

namespace detail {

inline std::vector<Index> read_indices(const CaseFile& file, const char* key) {
  std::vector<Index> result;
  const nlohmann::json list = file.json(key);
  if (!list.is_array()) file.fail("__metadata__.", key, " must be a list");
  for (const auto& value : list) result.push_back(json_size(value, file.path() + ": " + key));
  return result;
}

// Tokens of each call; without the key, all in one.
inline std::vector<Index> read_calls(const CaseFile& file, Index tokens) {
  if (!file.has_metadata("calls")) return {tokens};
  const std::vector<Index> calls = read_indices(file, "calls");
  Index left = tokens;
  bool fits = true;
  for (const Index call : calls) {
    fits = fits && call >= 1 && call <= left;
    left -= fits ? call : 0;
  }
  if (!fits || left != 0)
    file.fail("calls ", file.text("calls"), " do not make up the ", tokens, " tokens");
  return calls;
}

inline void read_input(const CaseFile& file, AttentionCase& result) {
  const Index tokens = result.tokens;
  const std::vector<Index> shape = {result.sequences, tokens};
  result.hidden_states =
      file.tensor("hidden_states").matrix(result.rows(), result.config.hidden_size);
  result.calls = read_calls(file, tokens);
  if (file.contains("attention_mask"))
    for (const Index kept : file.integers("attention_mask", shape)) {
      if (kept != 0 && kept != 1) file.fail("tensor attention_mask must be 0 or 1, got ", kept);
      result.attention_mask.push_back(static_cast<std::uint8_t>(kept));
    }
  if (file.contains("position_ids")) {
    result.position_ids = file.integers("position_ids", shape);
  } else if (!result.attention_mask.empty() && result.calls.size() > 1) {
    // A cache knows nothing of padding at the end of the call before: say where the next begins.
    result.position_ids = result.explicit_positions();
  }
}

inline void read_expected(const CaseFile& file, const std::string& prefix, AttentionCase& result) {
  const Index sequences = result.sequences, tokens = result.tokens;
  const AttentionConfig& config = result.config;
  result.last_output = tokens;
  if (file.has_metadata("output_rows")) {
    const std::vector<Index> range = read_indices(file, "output_rows");
    if (range.size() != 2 || range[0] >= range[1] || range[1] > tokens)
      file.fail("output_rows ", file.text("output_rows"), " is no range of the ", tokens,
                " tokens");
    result.first_output = range[0];
    result.last_output = range[1];
  }
  const auto read = [&](const std::string& name, Index count, Index width) {
    return file.tensor(name, {sequences, count, width}).matrix(sequences * count, width);
  };
  const std::string k_pe = prefix + "k_pe";
  result.expected.latent = read("latent", tokens, config.kv_lora_rank);
  result.expected.k_pe = read(file.contains(k_pe) ? k_pe : "k_pe", tokens, config.rope_key_width());
  const Index outputs = result.last_output - result.first_output;
  const RowMajorMatrix output = read("output", outputs, config.hidden_size);
  result.expected.output = RowMajorMatrix::Zero(result.rows(), config.hidden_size);
  for (Index s = 0; s < sequences; ++s)
    result.expected.output.middleRows(s * tokens + result.first_output, outputs) =
        output.middleRows(s * outputs, outputs);
}

// `prefix` begins the names of tensors that take the place of the usual ones.
inline AttentionCase read_variant(const CaseFile& file, AttentionConfig config,
                                  WeightFormat weights, const std::string& prefix) {
  config.validate();
  const std::vector<Index>& shape = file.tensor("hidden_states").shape;
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] != config.hidden_size)
    file.fail("tensor hidden_states has shape ", shape_text(shape),
              ", expected [sequences, tokens, ", config.hidden_size, "]");
  AttentionCase result(config, shape[0], shape[1]);
  result.prefix = prefix;
  result.weights = std::make_unique<CaseWeights>(file, config, weights, prefix);
  read_input(file, result);
  read_expected(file, prefix, result);
  return result;
}

}  // namespace detail

/// The layers that a file is about: one, or for mla_rope_pair two with the same results, with
/// interleaved and with half-split rotary pairs. `weights` as for CaseWeights.
inline std::vector<AttentionCase> read_attention_cases(const CaseFile& file, WeightFormat weights) {
  const std::string& kind = file.kind();
  if (kind != "mla" && kind != "mla_rope_pair" && kind != "tutorial")
    file.fail("kind ", kind,
              " is not known; mla, mla_rope_pair, tutorial, rope_tables, cache_rows_656 and "
              "latent_cache are");
  AttentionConfig config = read_config(file);
  std::vector<AttentionCase> cases;
  cases.push_back(detail::read_variant(file, config, weights, ""));
  std::set<std::string> used = cases[0].weights->names();
  if (kind == "mla_rope_pair") {
    config.rope_interleave = !config.rope_interleave;
    cases.push_back(detail::read_variant(file, config, weights, "half_split."));
    used.insert(cases[1].weights->names().begin(), cases[1].weights->names().end());
  }
  file.refuse_other_weights(used);
  return cases;
}

/// What the specification, in double, makes of a case's input and weights as they are.
inline LayerResult reference_result(const AttentionCase& layer) {
  LayerResult result(layer.config, layer.rows());
  reference::Matrix<double> x = layer.hidden_states.cast<double>();
  for (Index row = 0; row < layer.rows(); ++row)
    if (!layer.is_token(row)) x.row(row).setZero();  // padding may hold anything, NaN too
  const std::vector<Index> positions = layer.explicit_positions();
  for (Index s = 0; s < layer.sequences; ++s) {
    const Index first = s * layer.tokens;
    const auto part = [&](const auto& all) {
      return all.empty() ? std::span(all)
                         : std::span(all).subspan(static_cast<std::size_t>(first),
                                                  static_cast<std::size_t>(layer.tokens));
    };
    const reference::Result<double> exact = reference::forward<double>(
        layer.config, layer.weights->views(), x.middleRows(first, layer.tokens), part(positions),
        {.keep = part(layer.attention_mask)});
    result.output.middleRows(first, layer.tokens) = exact.output.cast<float>();
    result.latent.middleRows(first, layer.tokens) = exact.latent.cast<float>();
    result.k_pe.middleRows(first, layer.tokens) = exact.rope_key.cast<float>();
  }
  return result;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_ATTENTION_CASE_HPP_
