#ifndef MLA_EXAMPLES_CONFORMANCE_RUN_CASE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_RUN_CASE_HPP_

#include <array>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention_case.hpp"
#include "cache_cases.hpp"
#include "case_file.hpp"
#include "largest_logit.hpp"
#include "report.hpp"
#include "rope_tables.hpp"
#include "run_layer.hpp"
#include "tolerance.hpp"

#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/simd/kernels.hpp"

namespace mla::conformance {

struct Options {
  std::vector<AttentionForm> modes = {AttentionForm::absorbed, AttentionForm::decompressed};
  WeightFormat weights = WeightFormat::float32;  ///< float32: as stored; bfloat16: rounded
  CacheFormat cache = CacheFormat::float32;
  const simd::Kernels* kernels = &simd::kernels();
  double model_tolerance = 1e-3;  ///< of whole models, see docs/conformance.md
  std::string model = {};         ///< directory of the model for cases that need one
};

namespace detail {

// Rows of `expected` and `actual` for which compared(row) holds.
template <class Compared>
Check compare_rows(std::string name, const RowMajorMatrix& expected, const RowMajorMatrix& actual,
                   double tolerance, const Compared& compared) {
  Check check{.name = std::move(name), .tolerance = tolerance};
  for (Index row = 0; row < expected.rows(); ++row)
    if (compared(row))
      for (Index c = 0; c < expected.cols(); ++c) check.compare(expected(row, c), actual(row, c));
  return check;
}

inline std::vector<Check> compare_results(const std::string& name, const AttentionCase& layer,
                                          const LayerResult& expected, const LayerResult& actual,
                                          const Tolerance& tolerance) {
  const auto is_token = [&](Index row) { return layer.is_token(row); };
  return {compare_rows(name + "output", expected.output, actual.output, tolerance.output,
                       [&](Index row) { return layer.has_output(row); }),
          compare_rows(name + "latent", expected.latent, actual.latent, tolerance.latent, is_token),
          compare_rows(name + "k_pe", expected.k_pe, actual.k_pe, tolerance.k_pe, is_token)};
}

// What a file says about the layer besides results. Shown only where it does not hold.
inline std::vector<Check> compare_settings(const CaseFile& file, const AttentionConfig& config) {
  const RotaryEmbedding rotary(config);
  std::vector<Check> checks;
  if (file.has_metadata("softmax_scale"))
    checks.push_back(
        compare_number("softmax_scale", file.number("softmax_scale"), softmax_scale(config)));
  if (file.has_metadata("cos_sin_scale"))
    checks.push_back(
        compare_number("cos_sin_scale", file.number("cos_sin_scale"), rotary.cos_sin_scale()));
  if (file.contains("inv_freq")) checks.push_back(compare_inv_freq(file, "inv_freq", rotary));
  for (Check& check : checks) check.shown = false;
  return checks;
}

// A layer with what its results are compared with.
struct Expectation {
  Tolerance to_case;                        // of the results that the file states
  Tolerance to_double;                      // of same_weights
  std::optional<LayerResult> same_weights;  // only where rounding changed the weights
};

inline Expectation expectation(const AttentionCase& layer, const Options& options) {
  Expectation result;
  const bool rounded_weights = layer.weights->rounded();
  const bool rounded_cache = options.cache != CacheFormat::float32;
  const bool rounded_products =
      (simd::arithmetic_of(options.kernels->isa) == Arithmetic::bfloat16 &&
       layer.weights->bfloat16_products()) ||
      options.kernels->of(options.cache).arithmetic == Arithmetic::bfloat16;
  if (!rounded_weights && !rounded_cache && !rounded_products) return result;
  const double logit = largest_logit(layer);
  if (rounded_weights) {
    result.same_weights = reference_result(layer);
    result.to_case.add_rounded_weights(logit);
  }
  if (rounded_cache) {
    result.to_case.add_rounded_cache(options.cache, logit);
    result.to_double.add_rounded_cache(options.cache, logit);
  }
  if (rounded_products) {
    result.to_case.add_bfloat16_arithmetic(logit);
    result.to_double.add_bfloat16_arithmetic(logit);
  }
  std::array<char, 32> largest{};
  std::snprintf(largest.data(), largest.size(), ", logits to %.1f", logit);
  result.to_case.reason += largest.data();
  return result;
}

inline std::vector<Check> run_mode(const CaseFile& file, const AttentionCase& layer,
                                   const Expectation& expected, AttentionForm mode,
                                   const Options& options) {
  const LayerResult actual = run_layer(layer, mode, options.cache, *options.kernels);
  std::vector<Check> checks = compare_results("", layer, layer.expected, actual, expected.to_case);
  const auto add = [&](const std::vector<Check>& more) {
    checks.insert(checks.end(), more.begin(), more.end());
  };
  if (expected.same_weights) {
    add(compare_results("same_weights.", layer, *expected.same_weights, actual,
                        expected.to_double));
    checks[4].shown = checks[5].shown = false;
  }
  add(compare_settings(file, layer.config));
  for (Check& check : checks) check.name = layer.prefix + check.name;
  return checks;
}

}  // namespace detail

/// Runs a case: a report for each mode, or one for tables and for cached rows. Throws
/// std::exception for a file that is not a case, or not one that this library can run.
inline std::vector<Report> run_case(const CaseFile& file, const Options& options) {
  if (file.kind() == "rope_tables") return {check_rope_tables(file)};
  if (file.kind() == "cache_rows_656") return {check_cache_rows(file, *options.kernels)};
  if (file.kind() == "latent_cache") return {check_latent_cache(file, *options.kernels)};
  std::vector<Report> reports;
  for (const AttentionForm mode : options.modes)
    reports.push_back(
        {file.name(), mode == AttentionForm::absorbed ? "absorbed" : "decompressed", {}, {}});
  for (const AttentionCase& layer : read_attention_cases(file, options.weights)) {
    const detail::Expectation expected = detail::expectation(layer, options);
    for (std::size_t m = 0; m < reports.size(); ++m) {
      const auto checks = detail::run_mode(file, layer, expected, options.modes[m], options);
      reports[m].checks.insert(reports[m].checks.end(), checks.begin(), checks.end());
      reports[m].reason = expected.to_case.reason;
    }
  }
  return reports;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_RUN_CASE_HPP_
