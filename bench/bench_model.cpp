// Whole decoders with random weights from a checkpoint on disk, mapped as a published one is:
//   bench_model [--layers N] [--folder DIR] [--dims NAME] [--type N]
// The checkpoint is written to DIR (the system's temporary folder) and deleted. Its weights should
// be more than the machine's last cache holds: below that B/s says how fast the cache is.
//
//   Prompt   512 tokens into an empty cache. of_peak: of the products in registers. first_tokens/s:
//            of the first prompt after the model was loaded; load_s: how long that took
//   Decode   each of some texts goes on by one token. B/s: of the weights and scales that a step
//            needs, read once; of_bandwidth: divided by what the same threads read from memory
//
//   Verify   one text goes on by some tokens in one call, as drafts are verified. cost: the time by
//            that of one token; drafts pay where more tokens of a call are right than that
//
// of_roofline: the time that bandwidth or peak of the same run allow, by the time it took.
// loaded_MB: what loading brought into memory; resident_MB: that and the calls since, their caches
// included; model_MB: the file.
// dims: 0 dense, 1 small (DeepSeek-V2-Lite's attention, 32 experts of 704), 2 v2lite (its own
// dims), 3 v3 (DeepSeek-V3's with 16 experts); 2 and 3 only by --dims. Caches are bfloat16, but
// float32 for weights of that type. `threads`, `isa` and `type` as in kernel_benchmark.hpp.

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernel_benchmark.hpp"
#include "mla/model/decoder_model.hpp"
#include "random_checkpoint.hpp"

namespace mla::bench {
namespace {

constexpr Index kHistory = 64;  // tokens of each text before the first step
constexpr Index kPrompt = 512;

std::vector<ModelDims> model_dims() {
  const AttentionConfig v2 = AttentionConfig::deepseek_v2_lite();
  const AttentionConfig v3 = AttentionConfig::deepseek_v3();
  return {{"dense", v2, 8192, 5632, 0, 0, 0, 0, 0, 4},
          {"small", v2, 8192, 5632, 32, 6, 2, 704, 0, 2},
          {"v2lite", v2, 102400, 10944, 64, 6, 2, 1408, 1, 6},
          {"v3", v3, 129280, 18432, 16, 8, 1, 2048, 1, 3}};
}

struct Settings {
  std::filesystem::path folder = std::filesystem::temp_directory_path();
  std::optional<Index> layers, dims, type;
} settings;

/// Bytes of this process in memory.
double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double size = 0.0, resident = 0.0;
  file >> size >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

/// A model that was loaded from disk, with what it took.
class LoadedModel {
 public:
  LoadedModel(const ModelDims& dims, WeightFormat format)
      : checkpoint_(dims, format, settings.folder / ("bench_model-" + std::to_string(::getpid()))) {
    load();
  }

  /// Anew: nothing of it is in this process's memory.
  void load() {
    model_.reset();
    SerialExecutor executor;
    read_bandwidth().measure(executor);  // has memory of its own from the first time on
    before_ = resident_bytes();
    const double start = seconds();
    model_.emplace(DecoderModel::load(checkpoint_.folder()));
    load_seconds_ = seconds() - start;
    loaded_ = resident_bytes() - before_;
  }

  const DecoderModel& decoder() const { return *model_; }
  const RandomCheckpoint& checkpoint() const { return checkpoint_; }

  void report(benchmark::State& state) const {
    state.counters["load_s"] = load_seconds_;
    state.counters["model_MB"] = 1e-6 * checkpoint_.bytes();
    state.counters["loaded_MB"] = 1e-6 * loaded_;
    state.counters["resident_MB"] = 1e-6 * (resident_bytes() - before_);
  }

 private:
  RandomCheckpoint checkpoint_;
  std::optional<DecoderModel> model_;
  double load_seconds_ = 0.0, before_ = 0.0, loaded_ = 0.0;
};

/// The last one stays for the next row, if that needs the same.
LoadedModel& loaded_model(const benchmark::State& state) {
  static std::unique_ptr<LoadedModel> model;
  static std::pair made = {Index{0}, Index{0}};
  const std::pair wanted = {state.range(1), state.range(2)};
  if (!model || made != wanted) {
    model.reset();
    ModelDims dims = model_dims().at(static_cast<std::size_t>(state.range(2)));
    if (settings.layers) dims.layers = *settings.layers;
    model = std::make_unique<LoadedModel>(dims, static_cast<WeightFormat>(state.range(1)));
    made = wanted;
  }
  return *model;
}

CacheFormat cache_for_weights(const benchmark::State& state) {
  return state.range(1) == 0 ? CacheFormat::float32 : CacheFormat::bfloat16;
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

  // The first text by several tokens, all of which are taken back.
  void verify(Index count) {
    const std::vector<TokenId> tokens = some_tokens(count, model_, steps_++);
    logits_.resize(count, model_.vocab_size());
    model_.forward(tokens, states_[0], logits_, context_, {.mode = AttentionForm::absorbed});
    states_[0].truncate(kHistory);
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
  const LoadedModel& model = loaded_model(state);
  const RandomCheckpoint& weights = model.checkpoint();
  Texts batch(model.decoder(), cache_for_weights(state), texts, bench.context);
  const double tokens = double(texts);
  const double flops = 2.0 * tokens * (weights.elements_of_token() + weights.elements_of_head());
  const double seconds =
      Meter(state, bench.context).run(flops, weights.bytes_of(tokens), [&] { batch.step(); });
  state.counters["tokens/s"] = tokens / seconds;
  model.report(state);
}

void verify(benchmark::State& state) {
  const Index tokens = state.range(4);
  Bench bench(state, static_cast<int>(state.range(3)));
  const LoadedModel& model = loaded_model(state);
  Texts text(model.decoder(), cache_for_weights(state), 1, bench.context);
  std::vector<double> one, all;
  const auto time_of = [&](Index count) {
    const double start = seconds_of(state.range(3));
    text.verify(count);
    return seconds_of(state.range(3)) - start;
  };
  time_of(tokens);
  for (auto _ : state) {
    one.push_back(time_of(1));
    all.push_back(time_of(tokens));
    state.SetIterationTime(all.back());
  }
  state.counters["cost"] = median(all) / median(one);
  state.counters["median_ms"] = 1e3 * median(all);
}

void prompt(benchmark::State& state) {
  Bench bench(state, static_cast<int>(state.range(3)));
  LoadedModel& model = loaded_model(state);
  model.load();
  const DecoderModel& decoder = model.decoder();
  const RandomCheckpoint& weights = model.checkpoint();
  const std::vector<TokenId> tokens = some_tokens(kPrompt, decoder);
  DecoderState caches(decoder.config(), cache_for_weights(state));
  RowMajorMatrix logits(1, decoder.vocab_size());
  const auto run = [&] {
    caches.clear();
    decoder.forward(tokens, caches, logits, bench.context);
  };
  const double start = seconds_of(state.range(3));
  run();
  const double first = seconds_of(state.range(3)) - start;
  // The head makes logits of the last token only.
  const double flops =
      2.0 * (double(kPrompt) * weights.elements_of_token() + weights.elements_of_head());
  const double seconds =
      Meter(state, bench.context).run(flops, weights.bytes_of(double(kPrompt)), run);
  state.counters["tokens/s"] = double(kPrompt) / seconds;
  state.counters["first_tokens/s"] = double(kPrompt) / first;
  model.report(state);
}

void register_rows() {
  const Index cores = std::max<Index>(1, std::thread::hardware_concurrency());
  const auto row = [](const char* name, auto* run, const std::vector<Index>& args) {
    benchmark::RegisterBenchmark(name, run)
        ->ArgNames({"isa", "type", "dims", "threads", "texts"})
        ->Args({args.begin(), args.end()})
        ->UseManualTime()
        ->Iterations(7)
        ->Unit(benchmark::kMillisecond);
  };
  const std::vector<Index> all_dims =
      settings.dims ? std::vector{*settings.dims} : std::vector<Index>{0, 1};
  const std::vector<Index> types =
      settings.type ? std::vector{*settings.type} : std::vector<Index>{1, 3, 4, 5, 0};
  for (const Index dims : all_dims)
    for (const Index type : types)
      for (const Index isa : isas()) {
        if (type == 0 && isa != isas().front()) continue;  // the same arithmetic
        for (const Index threads : std::set<Index>{1, cores}) {
          row("Prompt", prompt, {isa, type, dims, threads, 1});
          for (const Index texts : {1, 8}) row("Decode", decode, {isa, type, dims, threads, texts});
          for (const Index tokens : {2, 3, 5, 9})
            row("Verify", verify, {isa, type, dims, threads, tokens});
        }
      }
}

// Options that the benchmark library did not take. Whether they are understood.
bool read_settings(std::span<char*> words) {
  for (std::size_t i = 0; i + 1 < words.size(); i += 2) {
    const std::string_view name = words[i], value = words[i + 1];
    if (name == "--layers") {
      settings.layers = std::atoi(words[i + 1]);
    } else if (name == "--folder") {
      settings.folder = value;
    } else if (name == "--type") {
      settings.type = std::atoi(words[i + 1]);
    } else if (name == "--dims") {
      const std::vector<ModelDims> all = model_dims();
      const auto found =
          std::ranges::find_if(all, [&](const ModelDims& dims) { return dims.name == value; });
      if (found == all.end()) return false;
      settings.dims = found - all.begin();
    } else {
      return false;
    }
  }
  return words.size() % 2 == 0;
}

}  // namespace
}  // namespace mla::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (!mla::bench::read_settings({argv + 1, argv + argc})) {
    std::fprintf(stderr,
                 "usage: bench_model [--layers N] [--folder DIR] [--dims dense|small|v2lite|v3] "
                 "[--type N] [--benchmark_...]\n");
    return 2;
  }
  mla::bench::register_rows();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
