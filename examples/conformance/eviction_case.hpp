#ifndef MLA_EXAMPLES_CONFORMANCE_EVICTION_CASE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_EVICTION_CASE_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"
#include "run_case.hpp"

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/io/json.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/ops/context.hpp"

// Kind eviction: a text on a model of --model whose caches forget tokens by a policy.

namespace mla::conformance {

namespace detail {

// Where a token would be one more than `limit` (0: none), the oldest `at_once` behind the first
// `sinks` go; those that are left count as 0, 1, 2, ... if they are renumbered.
struct EvictionPolicy {
  std::string name;
  Index limit, sinks, at_once;
  bool renumbered;
};

class EvictionCase {
 public:
  explicit EvictionCase(const std::filesystem::path& path) : file_(path) {
    tokens_ = file_.tensor("input_ids").values<std::int32_t>();
    rows_ = file_.tensor("rows").values<std::int32_t>();
    if (tokens_.empty()) fail("input_ids is empty");
    for (const std::int32_t row : rows_)
      if (row < 0 || row >= std::ssize(tokens_))
        fail("rows has ", row, ", input_ids has ", tokens_.size(), " tokens");
    read_policies();
  }

  Index tokens() const noexcept { return std::ssize(tokens_); }
  const std::vector<EvictionPolicy>& policies() const noexcept { return policies_; }

  Report run(const EvictionPolicy& policy, const DecoderModel& model, AttentionForm mode,
             const Options& options) const {
    const RowMajorMatrix logits = forward(policy, model, mode, *options.kernels);
    Check close{policy.name + ".logits", 0.0, 1.0, options.model_tolerance};
    Check loss{policy.name + ".loss", 0.0, 1.0, options.model_tolerance};
    Check best{policy.name + ".best", 0.0, 1.0, 0.0};
    const float* expected = floats(policy.name + ".logits", std::ssize(rows_), logits.cols());
    for (const std::int32_t row : rows_) {
      const std::span<const float> right(expected, static_cast<std::size_t>(logits.cols()));
      const std::span<const float> computed(logits.row(row).data(), right.size());
      for (std::size_t i = 0; i < right.size(); ++i)
        compare_as_is(close, static_cast<double>(right[i]), static_cast<double>(computed[i]));
      if (row + 1 < tokens()) {
        const auto next = static_cast<std::size_t>(tokens_[static_cast<std::size_t>(row) + 1]);
        compare_as_is(loss, loss_of(right, next), loss_of(computed, next));
      }
      expected += logits.cols();
    }
    const auto tokens_that_follow = file_.tensor(policy.name + ".best").values<std::int32_t>();
    if (std::ssize(tokens_that_follow) != tokens())
      fail("tensor ", policy.name, ".best has ", tokens_that_follow.size(), " elements for ",
           tokens(), " tokens");
    for (Index t = 0; t < tokens(); ++t) {
      Index likely = 0;
      logits.row(t).maxCoeff(&likely);
      best.error += likely != tokens_that_follow[static_cast<std::size_t>(t)];
    }
    return {policy.name,
            mode == AttentionForm::absorbed ? "absorbed" : "decompressed",
            {close, loss, best},
            "f32 cache"};
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_runtime(file_.path(), ": ", parts...);
  }

 private:
  void read_policies() {
    const auto text = file_.metadata().find("cases");
    if (text == file_.metadata().end()) fail("__metadata__.cases is missing");
    const nlohmann::json cases = nlohmann::json::parse(text->second, nullptr, false);
    if (!cases.is_object()) fail("__metadata__.cases must be an object");
    for (const auto& [name, policy] : cases.items()) {
      const auto number = [&](const char* key) {
        if (!policy.is_object() || !policy.contains(key) || !policy[key].is_number_integer())
          fail("__metadata__.cases.", name, ".", key, " must be an integer");
        return policy[key].template get<Index>();
      };
      EvictionPolicy read = {name, number("limit"), number("sinks"), number("dropped_at_once"),
                             policy.value("renumbered", nlohmann::json(false)) == true};
      if (read.limit < 0 || read.sinks < 0 || read.at_once < 1 ||
          (read.limit > 0 && read.sinks + read.at_once > read.limit))
        fail("__metadata__.cases.", name, " cannot drop ", read.at_once, " of ", read.limit,
             " tokens behind ", read.sinks);
      policies_.push_back(std::move(read));
    }
  }

  // Logits [tokens, vocab_size] of the text, token by token.
  RowMajorMatrix forward(const EvictionPolicy& policy, const DecoderModel& model,
                         AttentionForm mode, const simd::Kernels& kernels) const {
    DecoderState state(model.config());
    Context context(kernels);
    RowMajorMatrix logits(tokens(), model.vocab_size());
    std::vector<Index> oldest(static_cast<std::size_t>(policy.at_once));
    std::iota(oldest.begin(), oldest.end(), policy.sinks);
    for (Index t = 0; t < tokens(); ++t) {
      if (policy.limit > 0 && state.size() == policy.limit) {
        state.evict(oldest);
        if (policy.renumbered && state.size() > policy.sinks)
          state.shift(policy.sinks, -policy.at_once);
      }
      const TokenId token = tokens_[static_cast<std::size_t>(t)];
      model.forward({&token, 1}, state, logits.row(t), context, {.mode = mode});
    }
    return logits;
  }

  const float* floats(const std::string& name, Index rows, Index cols) const {
    const SafetensorsTensor& tensor = file_.tensor(name);
    if (tensor.shape != std::vector<Index>{rows, cols})
      fail("tensor ", name, " has shape ", shape_text(tensor.shape), ", expected ",
           shape_text({rows, cols}));
    return tensor.values<float>().data();
  }

  // Of any size: errors are not relative.
  static void compare_as_is(Check& check, double expected, double actual) noexcept {
    check.compare(expected, actual);
    check.largest = 1.0;
  }

  static double loss_of(std::span<const float> logits, std::size_t token) {
    const double peak = static_cast<double>(*std::ranges::max_element(logits));
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - peak);
    return peak + std::log(sum) - static_cast<double>(logits[token]);
  }

  SafetensorsFile file_;
  std::span<const std::int32_t> tokens_, rows_;
  std::vector<EvictionPolicy> policies_;
};

}  // namespace detail

/// Whether a case file is of kind eviction, which a layer alone cannot run.
inline bool is_eviction_case(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto kind = file.metadata().find("kind");
  return kind != file.metadata().end() && kind->second == "eviction";
}

/// All policies of such a file, on the model in --model, whose context may be shorter than the
/// text.
template <class Print>
void run_eviction(const std::filesystem::path& path, const Options& options, const Print& print) {
  const detail::EvictionCase eviction(path);
  if (options.model.empty()) eviction.fail("kind eviction needs a model: --model DIR");
  if (options.cache != CacheFormat::float32)
    eviction.fail("kind eviction is of a float32 cache, not ", name_of(options.cache));
  ModelConfig config = load_model_config(options.model);
  config.max_position_embeddings = std::max(config.max_position_embeddings, eviction.tokens());
  const DecoderModel model = DecoderModel::load(config, Checkpoint(options.model));
  for (const detail::EvictionPolicy& policy : eviction.policies())
    for (const AttentionForm mode : options.modes)
      print(eviction.run(policy, model, mode, options));
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_EVICTION_CASE_HPP_
