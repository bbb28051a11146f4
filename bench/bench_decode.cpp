// Greedy decoding of the tiny trained model on one thread: time a token against the time it takes
// to read the weights that a token touches, and speculative decoding against plain.
// docs/generate.md explains the numbers.
//   bench_decode [MODEL_DIR]        models/tiny-shakespeare-v3 without it
// Times are of the thread's own processor time: what else the machine does then counts little.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "machine.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"

namespace {

using mla::Index;
using mla::RowMajorMatrix;
using mla::TokenId;

constexpr Index kPrompt = 16;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<Index>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Bytes of the weights that a token is multiplied by: of the routed experts only those chosen.
double bytes_of_token(const mla::DecoderWeights& weights, const mla::ModelConfig& config) {
  Index bytes = weights.lm_head.bytes() + weights.norm.bytes();
  const auto add_mlp = [&](const mla::MlpWeights& mlp, Index times) {
    bytes += times * (mlp.gate_proj.bytes() + mlp.up_proj.bytes() + mlp.down_proj.bytes());
  };
  for (const mla::DecoderLayerWeights& layer : weights.layers) {
    const mla::AttentionWeights& attention = layer.self_attn;
    for (const mla::WeightView* weight :
         {&layer.input_layernorm, &layer.post_attention_layernorm, &attention.q_a_proj,
          &attention.q_a_layernorm, &attention.q_b_proj, &attention.q_proj,
          &attention.kv_a_proj_with_mqa, &attention.kv_a_layernorm, &attention.kv_b_proj,
          &attention.o_proj})
      bytes += weight->bytes();
    if (const auto* mlp = std::get_if<mla::MlpWeights>(&layer.mlp)) {
      add_mlp(*mlp, 1);
      continue;
    }
    const auto& experts = std::get<mla::MixtureOfExpertsWeights>(layer.mlp);
    bytes += experts.router.gate.bytes();
    add_mlp(experts.experts.front(), config.experts.num_experts_per_tok);
    if (experts.shared_experts) add_mlp(experts.shared_experts, 1);
  }
  return static_cast<double>(bytes);
}

class Decoder {
 public:
  explicit Decoder(const std::string& directory)
      : model_(mla::DecoderModel::load(directory)),
        sampler_(model_.vocab_size(), {.temperature = 0.0}) {
    const mla::Checkpoint checkpoint(directory);
    bytes_ =
        bytes_of_token(mla::load_decoder_weights(checkpoint, model_.config()), model_.config());
    const mla::SafetensorsFile goldens(directory + "/goldens.safetensors");
    const auto text = goldens.tensor("validation.input_ids").values<TokenId>();
    text_.assign(text.begin(), text.end());
  }

  const mla::DecoderModel& model() const { return model_; }
  mla::Sampler& sampler() { return sampler_; }
  double bytes() const { return bytes_; }
  /// The i-th prompt of the held-out text.
  std::span<const TokenId> prompt(Index i) const {
    const Index places = std::ssize(text_) / 256;
    return std::span(text_).subspan(static_cast<std::size_t>(i % places * 256), kPrompt);
  }

  /// Writes to the end of the context; seconds a token.
  double decode(Index prompt_number, mla::GenerationOptions options, mla::GenerationResult& all) {
    state_.clear();
    double first = 0.0;
    options.max_tokens = model_.max_position_embeddings();
    options.stop_at_eos = false;
    options.on_token = [&](TokenId) {
      if (first == 0.0) first = mla::bench::thread_seconds();
      return true;
    };
    const auto result =
        generate(model_, state_, prompt(prompt_number), sampler_, context_, options);
    const double elapsed = mla::bench::thread_seconds() - first;
    all.drafted_tokens += result.drafted_tokens;
    all.accepted_tokens += result.accepted_tokens;
    all.generated_tokens += result.generated_tokens - 1;  // the first is the prompt's
    all.decode_calls += result.decode_calls;
    return elapsed / static_cast<double>(result.generated_tokens - 1);
  }

 private:
  mla::DecoderModel model_;
  mla::Sampler sampler_;
  mla::SerialExecutor executor_;
  mla::Context context_{executor_};
  mla::DecoderState state_{model_.config()};
  std::vector<TokenId> text_;
  double bytes_ = 0.0;
};

// us_a_token, plainly and with drafts (`prediction` 1: by the module; `lookup`: out of the text);
// times_bandwidth: the plain time divided by the time to read a token's weights, from a block of
// memory of that size read again and again.
void decode(benchmark::State& state, Decoder& decoder) {
  mla::bench::ReadBandwidth cache(static_cast<std::size_t>(decoder.bytes()));
  std::vector<double> plain, speculative, bandwidth, ratio;
  mla::GenerationOptions with;
  with.speculative = state.range(0) != 0;
  with.draft_tokens = state.range(1);
  with.lookup = state.range(2);
  mla::GenerationResult drafts, none;
  Index prompt = 0;
  for (auto _ : state) {
    bandwidth.push_back(cache.measure_cached());
    plain.push_back(decoder.decode(prompt, {}, none));
    speculative.push_back(decoder.decode(prompt, with, drafts));
    ratio.push_back(plain.back() / speculative.back());
    state.SetIterationTime(plain.back());
    ++prompt;
  }
  state.counters["plain_us"] = 1e6 * median(plain);
  state.counters["speculative_us"] = 1e6 * median(speculative);
  state.counters["speed_up"] = median(ratio);
  state.counters["acceptance"] = drafts.acceptance();
  state.counters["tokens_per_call"] = double(drafts.generated_tokens) / double(drafts.decode_calls);
  state.counters["weights_MB"] = 1e-6 * decoder.bytes();
  state.counters["cache_GB/s"] = 1e-9 * median(bandwidth);
  state.counters["times_bandwidth"] = median(plain) * median(bandwidth) / decoder.bytes();
}

// What a step is made of, after 100 tokens.
void part(benchmark::State& state, Decoder& decoder, const std::string& name) {
  const mla::DecoderModel& model = decoder.model();
  const Index rows = state.range(0);
  mla::SerialExecutor executor;
  mla::Context context(executor);
  mla::DecoderState caches(model.config());
  caches.reserve(model.max_position_embeddings());
  std::vector<TokenId> tokens(100, 5);
  std::iota(tokens.begin(), tokens.end(), TokenId{100});
  RowMajorMatrix hidden(100, model.hidden_size()), logits(rows, model.vocab_size());
  RowMajorMatrix draft(1, model.vocab_size());
  model.forward_hidden(tokens, caches, hidden, context);
  model.prediction()->forward(hidden.topRows(99), std::span(tokens).subspan(1), 0,
                              *caches.prediction(), draft, context);
  const auto some = std::span<const TokenId>(tokens).first(static_cast<std::size_t>(rows));
  const std::function<void()> work = [&]() -> std::function<void()> {
    if (name == "layers")
      return [&] {
        model.forward_hidden(some, caches, hidden.topRows(rows), context,
                             {.mode = mla::AttentionForm::absorbed});
        caches.truncate_layers(100);
      };
    if (name == "head") return [&] { model.head(hidden.topRows(rows), logits, context); };
    if (name == "sampler")
      return [&] {
        benchmark::DoNotOptimize(decoder.sampler().next({logits.data(), 1024}, tokens));
      };
    return [&] {
      model.prediction()->forward(hidden.topRows(rows), some, 99, *caches.prediction(), draft,
                                  context, mla::AttentionForm::absorbed);
      caches.prediction()->truncate(99);
    };
  }();
  logits.setRandom();
  work();
  std::vector<double> times;
  for (auto _ : state) {
    constexpr int kCalls = 20;
    const double start = mla::bench::thread_seconds();
    for (int i = 0; i < kCalls; ++i) work();
    times.push_back((mla::bench::thread_seconds() - start) / kCalls);
    state.SetIterationTime(times.back());
  }
  state.counters["median_us"] = 1e6 * median(times);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  Decoder decoder(argc > 1 ? argv[1] : MLA_MODELS "/tiny-shakespeare-v3");
  auto* const rows = benchmark::RegisterBenchmark("Decode", decode, std::ref(decoder));
  rows->ArgNames({"prediction", "drafts", "lookup"});
  if (decoder.model().prediction())
    for (const Index drafts : {1, 2, 3, 4}) rows->Args({1, drafts, 0});
  for (const Index drafts : {1, 4, 8}) rows->Args({0, drafts, 3});
  if (decoder.model().prediction()) rows->Args({1, 1, 3})->Args({1, 4, 3});
  rows->UseManualTime()->Iterations(32)->Unit(benchmark::kMicrosecond);
  for (const char* name : {"layers", "head", "prediction", "sampler"})
    for (const Index tokens : {1, 2, 3, 5})
      benchmark::RegisterBenchmark((std::string("Part/") + name).c_str(), part, std::ref(decoder),
                                   name)
          ->ArgName("rows")
          ->Arg(tokens)
          ->UseManualTime()
          ->Iterations(200)
          ->Unit(benchmark::kMicrosecond);
  benchmark::RunSpecifiedBenchmarks();
}
