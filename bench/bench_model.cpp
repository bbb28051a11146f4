// Tokens per second of whole decoders with random weights, which are read from memory:
//   bench_model [MEGABYTES]     of weights in bfloat16, 400 without it; twice that in float32
// Take more than the machine's last cache holds: below that B/s says how fast the cache is.
//
//   Decode   each of some texts goes on by one token. B/s: of the weights that a step needs, read
//            once; of_bandwidth: divided by what the same threads read from memory, in the same run
//   Prompt   512 tokens into an empty cache. of_peak: of the products in registers
//
// experts: 0 is a dense model with DeepSeek-V2-Lite's attention, 1 one with 32 experts, of which
// a token takes 6 and 2 shared ones: as many weights per layer and token. Caches are of the
// weights' type. `threads`, `isa` and `type` as in kernel_benchmark.hpp.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kernel_benchmark.hpp"
#include "mla/model/decoder_model.hpp"

namespace mla::bench {
namespace {

constexpr Index kHistory = 64;  // tokens of each text before the first step
constexpr Index kPrompt = 512;

WeightFormat weight_format_of(const benchmark::State& state) {
  return static_cast<WeightFormat>(state.range(1));
}

double bytes_of(WeightFormat format) { return info_of(format).bits / 8.0; }

ModelConfig model_config(bool experts) {
  ModelConfig config;
  config.model_type = "deepseek_v2";
  config.attention = AttentionConfig::deepseek_v2_lite();
  config.vocab_size = 8192;
  config.intermediate_size = 5632;
  config.num_nextn_predict_layers = 0;
  config.first_k_dense_replace = 0;
  config.experts.n_routed_experts = experts ? 32 : 0;
  config.experts.num_experts_per_tok = 6;
  config.experts.n_shared_experts = 2;
  config.experts.moe_intermediate_size = 704;
  config.experts.scoring_func = ScoringFunction::softmax;
  config.experts.topk_method = TopkMethod::greedy;
  config.experts.norm_topk_prob = false;
  config.experts.routed_scaling_factor = 1.0;
  return config;
}

/// A decoder and the memory of its weights: at least `megabytes` of them in bfloat16.
class RandomModel {
 public:
  RandomModel(bool experts, WeightFormat format, double megabytes)
      : config_(model_config(experts)), format_(format) {
    weights_.embed_tokens = matrix(config_.vocab_size, config_.hidden_size());
    weights_.lm_head = matrix(config_.vocab_size, config_.hidden_size());
    weights_.norm = ones(config_.hidden_size());
    do weights_.layers.push_back(layer());
    while (2e-6 * elements_ < megabytes);
    config_.num_hidden_layers = std::ssize(weights_.layers);
    model_.emplace(config_, weights_);
  }

  const DecoderModel& decoder() const { return *model_; }
  double megabytes() const { return 1e-6 * elements_ * bytes_of(format_); }

  /// Elements of the matrices that `tokens` tokens of one call are multiplied by: each expert that
  /// one of them takes counts once, where all experts are equally likely.
  double elements_of(double tokens) const {
    const MixtureOfExpertsConfig& experts = config_.experts;
    const double hidden = double(config_.hidden_size());
    double elements = double(config_.vocab_size) * hidden;
    for (const DecoderLayerWeights& layer : weights_.layers) {
      const AttentionWeights& attention = layer.self_attn;
      for (const WeightView* w : {&attention.q_proj, &attention.kv_a_proj_with_mqa,
                                  &attention.kv_b_proj, &attention.o_proj})
        elements += double(w->rows * w->cols);
      if (experts.n_routed_experts == 0) {
        elements += 3.0 * hidden * double(config_.intermediate_size);
        continue;
      }
      const double all = double(experts.n_routed_experts);
      const double unused = 1.0 - double(experts.num_experts_per_tok) / all;
      const double used = all * (1.0 - std::pow(unused, tokens));
      elements += hidden * (all + 3.0 * double(experts.moe_intermediate_size) *
                                      (used + double(experts.n_shared_experts)));
    }
    return elements;
  }

 private:
  template <class T>
  WeightView tensor(Index rows, Index cols, std::vector<T> elements) {
    elements_ += double(rows * cols);
    auto memory = std::make_shared<std::vector<T>>(std::move(elements));
    memory_.push_back(memory);
    return {memory->data(), rows, cols};
  }
  WeightView matrix(Index rows, Index cols) {
    const float scale = std::sqrt(3.0f / float(cols));
    if (format_ == WeightFormat::bfloat16)
      return tensor(rows, cols, random_values<bfloat16>(rows * cols, scale));
    return tensor(rows, cols, random_values<float>(rows * cols, scale));
  }
  WeightView ones(Index n) {
    return tensor(1, n, std::vector<float>(static_cast<std::size_t>(n), 1.0f));
  }
  MlpWeights mlp(Index intermediate) {
    const Index hidden = config_.hidden_size();
    return {matrix(intermediate, hidden), matrix(intermediate, hidden),
            matrix(hidden, intermediate)};
  }

  DecoderLayerWeights layer() {
    const AttentionConfig& c = config_.attention;
    const Index heads = c.num_attention_heads;
    DecoderLayerWeights layer;
    layer.input_layernorm = ones(c.hidden_size);
    layer.post_attention_layernorm = ones(c.hidden_size);
    layer.self_attn.q_proj = matrix(heads * c.qk_head_dim(), c.hidden_size);
    layer.self_attn.kv_a_proj_with_mqa = matrix(c.cache_row_width(), c.hidden_size);
    layer.self_attn.kv_a_layernorm = ones(c.kv_lora_rank);
    layer.self_attn.kv_b_proj = matrix(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
    layer.self_attn.o_proj = matrix(c.hidden_size, heads * c.v_head_dim);
    const MixtureOfExpertsConfig& experts = config_.experts;
    if (experts.n_routed_experts == 0) {
      layer.mlp = mlp(config_.intermediate_size);
      return layer;
    }
    MixtureOfExpertsWeights mixture;
    mixture.router.gate = matrix(experts.n_routed_experts, c.hidden_size);
    for (Index e = 0; e < experts.n_routed_experts; ++e)
      mixture.experts.push_back(mlp(experts.moe_intermediate_size));
    mixture.shared_experts = mlp(experts.n_shared_experts * experts.moe_intermediate_size);
    layer.mlp = std::move(mixture);
    return layer;
  }

  ModelConfig config_;
  WeightFormat format_;
  double elements_ = 0.0;
  std::vector<std::shared_ptr<void>> memory_;
  DecoderWeights weights_;
  std::optional<DecoderModel> model_;
};

double megabytes = 400.0;

/// The last one stays for the next row, if that needs the same.
const RandomModel& random_model(bool experts, WeightFormat format) {
  static std::unique_ptr<RandomModel> model;
  static std::pair made = {false, WeightFormat::float32};
  if (!model || made != std::pair(experts, format)) {
    model.reset();
    model = std::make_unique<RandomModel>(experts, format, megabytes);
    made = {experts, format};
  }
  return *model;
}

std::vector<TokenId> some_tokens(Index count, const DecoderModel& model, Index first = 0) {
  std::vector<TokenId> tokens;
  for (Index i = first; i < first + count; ++i)
    tokens.push_back(static_cast<TokenId>((i * 7919 + 17) % model.vocab_size()));
  return tokens;
}

/// Texts with a history, each of which can go on by a token.
class Texts {
 public:
  Texts(const DecoderModel& model, CacheFormat format, Index texts, Context& context)
      : model_(model), context_(context), logits_(texts, model.vocab_size()) {
    const std::vector<TokenId> history = some_tokens(kHistory, model);
    for (Index i = 0; i < texts; ++i) {
      DecoderState& state = states_.emplace_back(model.config(), format);
      model.forward(history, state, logits_.topRows(1), context);
    }
  }

  // All in one call.
  void step() {
    const std::vector<TokenId> tokens = some_tokens(std::ssize(states_), model_, steps_++);
    std::vector<TextStep> steps;
    for (std::size_t i = 0; i < states_.size(); ++i)
      steps.push_back({.state = &states_[i], .tokens = std::span(tokens).subspan(i, 1)});
    model_.forward(steps, logits_, context_);
  }

 private:
  const DecoderModel& model_;
  Context& context_;
  RowMajorMatrix logits_;  // [texts, vocab_size]
  std::vector<DecoderState> states_;
  Index steps_ = 0;
};

void decode(benchmark::State& state) {
  const Index texts = state.range(4);
  Bench bench(state, static_cast<int>(state.range(3)));
  const WeightFormat format = weight_format_of(state);
  const RandomModel& model = random_model(state.range(2) != 0, format);
  Texts batch(model.decoder(), cache_format_of(state), texts, bench.context);
  const double tokens = double(texts), bytes = bytes_of(format) * model.elements_of(tokens);
  const double seconds =
      Meter(state, bench.context).run(2.0 * tokens * model.elements_of(1.0), bytes, [&] {
        batch.step();
      });
  state.counters["tokens/s"] = tokens / seconds;
  state.counters["model_MB"] = model.megabytes();
}

void prompt(benchmark::State& state) {
  Bench bench(state, static_cast<int>(state.range(3)));
  const RandomModel& model = random_model(state.range(2) != 0, weight_format_of(state));
  const DecoderModel& decoder = model.decoder();
  const std::vector<TokenId> tokens = some_tokens(kPrompt, decoder);
  DecoderState caches(decoder.config(), cache_format_of(state));
  RowMajorMatrix logits(1, decoder.vocab_size());
  // The head makes logits of the last token only.
  const double head = double(decoder.vocab_size() * decoder.hidden_size());
  const double flops = 2.0 * (double(kPrompt) * (model.elements_of(1.0) - head) + head);
  const double seconds = Meter(state, bench.context).run(flops, 0.0, [&] {
    caches.clear();
    decoder.forward(tokens, caches, logits, bench.context);
  });
  state.counters["tokens/s"] = double(kPrompt) / seconds;
  state.counters["model_MB"] = model.megabytes();
}

void register_rows() {
  const Index cores = std::max<Index>(1, std::thread::hardware_concurrency());
  const auto row = [](const char* name, auto* run, const std::vector<Index>& args) {
    benchmark::RegisterBenchmark(name, run)
        ->ArgNames({"isa", "type", "experts", "threads", "texts"})
        ->Args({args.begin(), args.end()})
        ->UseManualTime()
        ->Iterations(7)
        ->Unit(benchmark::kMillisecond);
  };
  for (const Index experts : {0, 1})
    for (const Index type : {1, 0})
      for (const Index isa : isas()) {
        if (type == 0 && isa != isas().front()) continue;  // the same arithmetic
        for (const Index threads : std::set<Index>{1, cores}) {
          for (const Index texts : {1, 8})
            row("Decode", decode, {isa, type, experts, threads, texts});
          row("Prompt", prompt, {isa, type, experts, threads, 1});
        }
      }
}

}  // namespace
}  // namespace mla::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc > 1) mla::bench::megabytes = std::atof(argv[1]);
  mla::bench::register_rows();
  benchmark::RunSpecifiedBenchmarks();
}
