#ifndef MLA_EXAMPLES_CONFORMANCE_MODEL_CASE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_MODEL_CASE_HPP_

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_goldens.hpp"
#include "report.hpp"
#include "run_case.hpp"

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "mla/ops/context.hpp"

// Whole models against the goldens.safetensors beside their weights.

namespace mla::conformance {

namespace detail {

// What a forward pass computes on its way, chunks put together.
class Recorder final : public DecoderObserver {
 public:
  struct Routing {
    std::vector<float> scores;   // [tokens, n_routed_experts]
    std::vector<Index> experts;  // [tokens, num_experts_per_tok]
    std::vector<float> weights;  // [tokens, num_experts_per_tok]
  };

  std::map<std::string, std::vector<float>> hidden;      // embed, layer0, ..., norm
  std::map<std::string, Routing> routing;                // layer1, ...
  std::map<std::string, std::vector<Index>> selections;  // layer0, ...: [tokens, index_topk]

  void on_embedding(MatrixView<const float> x) override { append(x, hidden["embed"]); }
  void on_layer(Index layer, MatrixView<const float> x) override { append(x, hidden[name(layer)]); }
  void on_norm(MatrixView<const float> x) override { append(x, hidden["norm"]); }
  // As goldens have them: the rows that a token sees, rising, then -1.
  void on_selection(Index layer, const IndexSelection& selection) override {
    std::vector<Index>& to = selections[name(layer)];
    for (const CallPlan::Share& share : selection.shares())
      for (Index i = 0; i < share.tokens; ++i) {
        const std::span<const Index> rows = selection.rows_of(share.first_token + i);
        to.insert(to.end(), rows.begin(), rows.end());
        for (Index row = 0; rows.empty() && row < selection.topk(); ++row)
          to.push_back(row <= share.past + i ? row : -1);
      }
  }
  void on_experts(Index layer, const ExpertChoice& choice) override {
    Routing& to = routing[name(layer)];
    append(choice.scores, to.scores);
    append(choice.experts, to.experts);
    append(choice.weights, to.weights);
  }

 private:
  static std::string name(Index layer) { return "layer" + std::to_string(layer); }
  template <class View, class T>
  static void append(const View& rows, std::vector<T>& to) {
    for (Index t = 0; t < rows.rows; ++t) to.insert(to.end(), rows.row(t), rows.row(t) + rows.cols);
  }
};

// Errors of values around 1 or less count as they are, those of larger ones relative to the
// largest.
inline Check compare_values(std::string name, std::span<const float> expected,
                            std::span<const float> actual, double tolerance) {
  Check check{std::move(name), 0.0, 1.0, tolerance};
  for (std::size_t i = 0; i < expected.size(); ++i)
    check.compare(static_cast<double>(expected[i]), static_cast<double>(actual[i]));
  return check;
}

// Logits count as they are, however large.
inline Check compare_logits(std::string name, std::span<const float> expected,
                            std::span<const float> actual, double tolerance) {
  Check check = compare_values(std::move(name), expected, actual, tolerance);
  check.largest = 1.0;
  return check;
}

// A choice and its weights, in the order of the experts' numbers: of nearly equal ones, files may
// have either first.
using Choice = std::vector<std::pair<Index, float>>;
inline Choice sorted_choice(std::span<const Index> experts, std::span<const float> weights,
                            std::size_t first, std::size_t count) {
  Choice choice;
  for (std::size_t k = first; k < first + count; ++k)
    choice.emplace_back(experts[k], k < weights.size() ? weights[k] : 0.0f);
  std::ranges::sort(choice);
  return choice;
}

// One model and cache format, all prompts.
class ModelCase {
 public:
  ModelCase(const DecoderModel& model, ModelGoldens& goldens, const Options& options)
      : model_(model), goldens_(goldens), options_(options), context_(*options.kernels) {}

  std::vector<Report> run(const std::string& prompt, AttentionForm mode) {
    prompt_ = prompt;
    mode_ = mode;
    reports_.clear();
    if (!expects_anything()) return {};
    tokens_ = goldens_.tokens(prompt + ".input_ids");
    require(!tokens_.empty(), goldens_.path(), ": ", prompt, ".input_ids is empty");
    const auto room = model_.max_position_embeddings();
    require(std::ssize(tokens_) <= room, goldens_.path(), ": ", prompt, ".input_ids has ",
            tokens_.size(), " tokens, but the context of the model only ", room);
    forward();
    check_logits();
    check_hidden();
    check_routers();
    check_selections();
    check_prediction();
    check_greedy();
    return reports_;
  }

 private:
  std::string name(std::string_view what) const { return prompt_ + "." + std::string(what); }
  Index tokens() const noexcept { return std::ssize(tokens_); }
  bool expects(std::string_view what) const { return goldens_.contains(name(what)); }

  bool expects_anything() const {
    return std::ranges::any_of(goldens_.endings(prompt_ + "."), [](const std::string& what) {
      return what.starts_with("logits") || what.starts_with("hidden.") ||
             what.starts_with("router.") || what.starts_with("indexer.") || what == "mtp_logits" ||
             what == "greedy";
    });
  }

  // LongRoPE: the rotation is that of a text of this length, as in goldens of one call each.
  DecoderState state_for(Index context_tokens) const {
    const bool chosen = model_.config().attention.rope_scaling.type == RopeScalingType::longrope;
    return DecoderState(model_.config(), options_.cache, chosen ? context_tokens : 0);
  }

  void add(Check check) {
    const std::string reason = std::string(name_of(options_.cache)) + " cache";
    const char* mode = mode_ == AttentionForm::absorbed ? "absorbed" : "decompressed";
    reports_.push_back({prompt_, mode, {std::move(check)}, reason});
  }

  // Fills recorder_, norm_ and, of prediction, drafts_.
  void forward() {
    recorder_ = {};
    const bool record = !goldens_.endings(name("hidden.")).empty() ||
                        !goldens_.endings(name("router.")).empty() ||
                        !goldens_.endings(name("indexer.")).empty();
    DecoderObserver* observer = record ? &recorder_ : nullptr;
    DecoderState state = state_for(tokens());
    norm_.resize(tokens(), model_.hidden_size());
    model_.forward_hidden(tokens_, state, norm_, context_, {.mode = mode_, .observer = observer});
    drafts_.resize(tokens() - 1, model_.vocab_size());
    if (!model_.prediction() || tokens() < 2 || (!record && !expects("mtp_logits"))) return;
    model_.prediction()->forward(norm_.topRows(tokens() - 1), std::span(tokens_).subspan(1), 0,
                                 *state.prediction(), drafts_, context_, mode_, observer);
  }

  // logits of all tokens, logits_lastN of the last N.
  void check_logits() {
    for (const std::string& rest : goldens_.endings(name("logits"))) {
      Index rows = tokens();
      if (!rest.empty()) {
        constexpr std::string_view kLast = "_last";
        if (!rest.starts_with(kLast)) continue;
        const char* end = rest.data() + rest.size();
        const auto [at, error] = std::from_chars(rest.data() + kLast.size(), end, rows);
        if (error != std::errc() || at != end || rows < 1 || rows > tokens())
          goldens_.fail(name("logits" + rest), " is of more tokens than the prompt has");
      }
      RowMajorMatrix logits(rows, model_.vocab_size());
      model_.head(norm_.bottomRows(rows), logits, context_);
      add_logits("logits" + rest, logits);
    }
  }

  void add_logits(const std::string& what, const RowMajorMatrix& actual) {
    const auto expected = goldens_.floats(name(what), {actual.rows(), actual.cols()});
    add(compare_logits(what, expected, {actual.data(), static_cast<std::size_t>(actual.size())},
                       options_.model_tolerance));
  }

  // Of several checks of a kind, one a layer, the worst is reported.
  void add_worst(const std::vector<Check>& checks) {
    const auto worst = std::ranges::max_element(checks, {}, &Check::relative);
    if (worst != checks.end()) add(*worst);
  }

  void check_hidden() {
    std::vector<Check> checks;
    for (const std::string& place : goldens_.endings(name("hidden."))) {
      const std::string what = "hidden." + place;
      const auto found = recorder_.hidden.find(place);
      if (found == recorder_.hidden.end()) goldens_.fail(name(what), ": the model has no ", place);
      const Index rows = std::ssize(found->second) / model_.hidden_size();
      checks.push_back(compare_values(what,
                                      goldens_.floats(name(what), {rows, model_.hidden_size()}),
                                      found->second, options_.model_tolerance));
    }
    add_worst(checks);
  }

  struct RouterChecks {
    std::vector<Check> scores, experts, weights;
  };

  void check_routers() {
    for (const std::string& rest : goldens_.endings(name("router."))) {
      const std::string layer = rest.substr(0, rest.find('.'));
      if (!recorder_.routing.contains(layer))
        goldens_.fail(name("router." + rest), ": the model has no experts in ", layer);
    }
    RouterChecks checks;
    for (const auto& [layer, routing] : recorder_.routing)
      check_router("router." + layer + ".", routing, checks);
    add_worst(checks.scores);
    add_worst(checks.experts);
    add_worst(checks.weights);
  }

  void check_router(const std::string& what, const Recorder::Routing& routing,
                    RouterChecks& checks) {
    const std::string scores = what + "scores", experts = what + "topk_indices";
    const std::string weights = what + "topk_weights";
    const Index count = model_.config().experts.num_experts_per_tok;
    const Index rows = std::ssize(routing.experts) / count;
    if (expects(scores)) {
      const Index all = model_.config().experts.choices();
      checks.scores.push_back(compare_values(scores, goldens_.floats(name(scores), {rows, all}),
                                             routing.scores, options_.model_tolerance));
    }
    if (!expects(experts)) return;
    goldens_.check_shape(name(experts), {rows, count});
    const std::vector<Index> wanted = goldens_.integers(name(experts));
    std::vector<float> factors;
    if (expects(weights)) factors = goldens_.floats(name(weights), {rows, count});
    Check choice{experts, 0.0, 1.0, 0.0}, weight{weights, 0.0, 1.0, options_.model_tolerance};
    const auto step = static_cast<std::size_t>(count);
    for (std::size_t first = 0; first < wanted.size(); first += step)
      compare_choice(sorted_choice(wanted, factors, first, step),
                     sorted_choice(routing.experts, routing.weights, first, step), choice, weight);
    checks.experts.push_back(choice);
    if (!factors.empty()) checks.weights.push_back(weight);
  }

  // The error of `experts` is the number of tokens that go elsewhere.
  static void compare_choice(const Choice& expected, const Choice& actual, Check& experts,
                             Check& weights) {
    if (!std::ranges::equal(expected, actual, {}, &Choice::value_type::first,
                            &Choice::value_type::first)) {
      experts.error += 1.0;
      return;
    }
    for (std::size_t k = 0; k < expected.size(); ++k)
      weights.compare(static_cast<double>(expected[k].second),
                      static_cast<double>(actual[k].second));
  }

  // The error is the number of tokens that see other rows.
  void check_selections() {
    std::vector<Check> checks;
    for (const std::string& rest : goldens_.endings(name("indexer."))) {
      const std::string layer = rest.substr(0, rest.find('.')), what = "indexer." + rest;
      if (!rest.ends_with(".topk")) continue;
      const auto found = recorder_.selections.find(layer);
      if (found == recorder_.selections.end())
        goldens_.fail(name(what), ": the model has no indexer in ", layer);
      const Index topk = model_.config().attention.indexer.topk;
      goldens_.check_shape(name(what), {std::ssize(found->second) / topk, topk});
      const std::vector<Index> expected = goldens_.integers(name(what));
      Check check{what, 0.0, 1.0, 0.0};
      const auto step = static_cast<std::size_t>(topk);
      for (std::size_t first = 0; first < expected.size(); first += step)
        check.error += !std::ranges::equal(std::span(expected).subspan(first, step),
                                           std::span(found->second).subspan(first, step));
      checks.push_back(check);
    }
    add_worst(checks);
  }

  void check_prediction() {
    if (!expects("mtp_logits")) return;
    if (!model_.prediction())
      goldens_.fail(name("mtp_logits"), ": the model has no multi-token prediction");
    add_logits("mtp_logits", drafts_);
  }

  void check_greedy() {
    if (!expects("greedy")) return;
    const std::vector<TokenId> expected = goldens_.tokens(name("greedy"));
    add(compare_tokens("greedy", expected, false));
    if (model_.prediction()) add(compare_tokens("greedy speculative", expected, true));
  }

  // The error is the number of tokens that differ.
  Check compare_tokens(const std::string& what, std::span<const TokenId> expected,
                       bool speculative) {
    std::vector<TokenId> text;
    GenerationOptions options;
    options.max_tokens = std::ssize(expected);
    options.stop_at_eos = false;
    options.speculative = speculative;
    options.prefill_mode = options.decode_mode = mode_;
    options.on_token = [&](TokenId token) {
      text.push_back(token);
      return true;
    };
    Sampler sampler(model_.vocab_size(), {.temperature = 0.0});
    DecoderState state = state_for(tokens() + std::ssize(expected));
    generate(model_, state, tokens_, sampler, context_, options);
    Check check{what, 0.0, 1.0, 0.0};
    for (std::size_t i = 0; i < expected.size(); ++i)
      check.error += i >= text.size() || text[i] != expected[i];
    return check;
  }

  const DecoderModel& model_;
  ModelGoldens& goldens_;
  const Options& options_;
  Context context_;
  std::string prompt_;
  AttentionForm mode_ = AttentionForm::automatic;
  std::vector<TokenId> tokens_;
  Recorder recorder_;
  RowMajorMatrix norm_;    // [tokens, hidden_size] after model.norm
  RowMajorMatrix drafts_;  // [tokens - 1, vocab_size] of multi-token prediction
  std::vector<Report> reports_;
};

template <class Print>
void run_prompts(const DecoderModel& model, ModelGoldens& goldens, const Options& options,
                 const Print& print) {
  ModelCase model_case(model, goldens, options);
  bool any = false;
  for (const std::string& prompt : goldens.prompts())
    for (const AttentionForm mode : options.modes)
      for (const Report& report : model_case.run(prompt, mode)) {
        print(report);
        any = true;
      }
  if (!any) throw_runtime(goldens.path(), ": no prompt with anything to compare");
}

}  // namespace detail

/// Whether a directory is a model's, not one of case files.
inline bool is_model(const std::filesystem::path& path) {
  return std::filesystem::exists(path / "config.json");
}

/// Runs the model in `directory` and calls print(report) for each prompt, mode and kind of tensor
/// in its goldens. Returns the names of tensors there that mean nothing here. Throws std::exception
/// for a model that cannot be run, and for goldens that are not for it.
template <class Print>
std::vector<std::string> run_model(const std::filesystem::path& directory, const Options& options,
                                   const Print& print) {
  require(options.weights == WeightFormat::float32,
          "--weights is for attention cases; a model's are used as they are");
  ModelGoldens goldens(directory / "goldens.safetensors");
  const DecoderModel model = DecoderModel::load(directory);
  detail::run_prompts(model, goldens, options, print);
  return goldens.unread();
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_MODEL_CASE_HPP_
