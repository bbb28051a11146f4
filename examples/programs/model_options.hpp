#ifndef MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_
#define MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_

#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cache_formats.hpp"
#include "command_line.hpp"
#include "isa_names.hpp"
#include "processors.hpp"
#include "progress.hpp"

#include "mla/attention/cost_model.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/quantise.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/read_model_config.hpp"
#include "mla/ops/context.hpp"
#include "mla/simd/isa.hpp"
#include "mla/simd/kernels.hpp"
#include "mla/text/tokenizer.hpp"

namespace mla::programs {

/// How to run a model, in all programs that run one. The default is all cores unless the model is
/// small, bfloat16 arithmetic where the machine has units for it, and a 16-bit cache.
struct ModelOptions {
  std::string directory;
  int threads = 0;  ///< 0: as many as are worth it, which default_threads() says
  AttentionForm mode = AttentionForm::automatic;
  const simd::Kernels* kernels = nullptr;
  CacheFormat cache = CacheFormat::float16;
  std::optional<WeightFormat> weights = std::nullopt;  ///< what to quantise to; nullopt: as stored

  static constexpr std::array<std::string_view, 6> kNames = {
      "--threads", "--mode", "--cache", "--isa", "--precision", "--weights"};
};

/// Their lines of the usage texts.
inline std::string model_usage() {
  return "  --threads N             default: all cores; for small models 1\n"
         "  --precision PRECISION   fast: bfloat16 arithmetic where this machine has units for "
         "it,\n"
         "                          a cache of 16 bits (default). exact: both in float32\n"
         "  --mode MODE             absorbed, decompressed or automatic attention (automatic)\n"
         "  --cache FORMAT          of the latent cache: " +
         cache_names() +
         "\n"
         "  --weights FORMAT        stored: as in the files (default). int8 or int4: quantised "
         "here\n"
         "  --isa ISA               kernels: " +
         isa_names() + "\n";
}

inline AttentionForm parse_mode(const std::string& name) {
  if (name == "absorbed") return AttentionForm::absorbed;
  if (name == "decompressed") return AttentionForm::decompressed;
  require(name == "automatic", "--mode must be absorbed, decompressed or automatic, got ", name);
  return AttentionForm::automatic;
}

/// What weights are to be quantised to: "int8" or "int4".
inline WeightFormat parse_quantised(const std::string& name) {
  for (const auto format : {WeightFormat::int8, WeightFormat::int4})
    if (name == name_of(format)) return format;
  throw_invalid("--weights must be int8 or int4, got ", name);
}

/// The cache that goes with kernels. Those that multiply in bfloat16 take a cache of bfloat16 as it
/// is, and round what it is multiplied by anyway; for others float16 is as fast and more precise.
inline CacheFormat fast_cache(const simd::Kernels& kernels) {
  return kernels.of(CacheFormat::bfloat16).arithmetic == Arithmetic::float32
             ? CacheFormat::float16
             : CacheFormat::bfloat16;
}

/// Throws std::invalid_argument for wrong usage.
inline ModelOptions parse_model_options(const CommandLine& line, const std::string& directory) {
  constexpr int kMaxThreads = 1024;
  ModelOptions options;
  options.directory = directory;
  options.threads = line.number("--threads", options.threads, 1);
  require(options.threads <= kMaxThreads, "--threads must be at most ", kMaxThreads, ", got ",
          options.threads);
  if (const auto name = line.text("--mode")) options.mode = parse_mode(*name);
  const std::string precision = line.text("--precision").value_or("fast");
  const bool exact = precision == "exact";
  require(exact || precision == "fast", "--precision must be fast or exact, got ", precision);
  options.kernels = &simd::kernels(exact ? Arithmetic::float32 : Arithmetic::bfloat16);
  if (const auto name = line.text("--isa")) options.kernels = parse_isa(*name);
  options.cache = exact ? CacheFormat::float32 : fast_cache(*options.kernels);
  if (const auto name = line.text("--cache")) options.cache = parse_cache(*name);
  const std::string weights = line.text("--weights").value_or("stored");
  require(weights == "stored" || weights == "int8" || weights == "int4",
          "--weights must be stored, int8 or int4, got ", weights);
  if (weights != "stored") options.weights = parse_quantised(weights);
  return options;
}

/// "2 threads, amx, bfloat16 arithmetic, bf16 cache", and what weights were quantised to
inline std::string describe(const ModelOptions& options) {
  const Arithmetic arithmetic = options.kernels->of(WeightFormat::bfloat16).arithmetic;
  std::string text = std::to_string(options.threads);
  text += options.threads == 1 ? " thread, " : " threads, ";
  text += simd::name_of(options.kernels->isa);
  text += ", ";
  text += name_of(arithmetic);
  text += " arithmetic, ";
  text += name_of(options.cache);
  text += " cache";
  if (options.weights) text += ", weights quantised to " + std::string(name_of(*options.weights));
  return text;
}

/// `kNames` of ModelOptions and `own`, for CommandLine.
inline std::vector<std::string_view> with_model_options(std::vector<std::string_view> own) {
  own.insert(own.end(), ModelOptions::kNames.begin(), ModelOptions::kNames.end());
  return own;
}

/// Threads of the system, or the calling one.
inline std::unique_ptr<Executor> make_executor(int threads) {
  if (threads > 1) return std::make_unique<EigenExecutor>(threads);
  return std::make_unique<SerialExecutor>();
}

inline void require_model_directory(const std::string& directory) {
  if (!std::filesystem::is_directory(directory))
    throw_runtime(directory, ": not a directory with a model");
}

/// The weights in a model's directory, quantised by default_policy() on `threads`, 0 for all cores.
inline Checkpoint load_quantised(const std::string& directory, WeightFormat format, int threads) {
  const auto executor = make_executor(threads == 0 ? available_cores() : threads);
  ProgressBar progress("quantising " + directory);
  return quantise(Checkpoint(directory), default_policy(format),
                  {.executor = executor.get(),
                   .on_progress = [&](Index done, Index all) { progress.show(done, all); }});
}

inline DecoderModel load_model(const ModelOptions& options) {
  require_model_directory(options.directory);
  if (options.weights)
    return DecoderModel::load(load_model_config(options.directory),
                              load_quantised(options.directory, *options.weights, options.threads));
  const ProgressClock progress("loading " + options.directory);
  return DecoderModel::load(options.directory);
}

/// The tokenizer in a model's directory. Throws std::runtime_error when it is not the model's. A
/// model may have rows for more tokens than there are, but no tokens beyond its rows.
inline Tokenizer load_tokenizer(const std::string& directory, const ModelConfig& config) {
  Tokenizer tokenizer{std::filesystem::path(directory)};
  if (tokenizer.vocab_size() > config.vocab_size)
    throw_runtime(directory, ": the tokenizer has ", tokenizer.vocab_size(),
                  " tokens, but the model a vocab_size of ", config.vocab_size);
  if (config.bos_token_id && tokenizer.bos_id() && *config.bos_token_id != *tokenizer.bos_id())
    throw_runtime(directory, ": the tokenizer begins a text with token ", *tokenizer.bos_id(),
                  ", but the model with bos_token_id ", *config.bos_token_id);
  return tokenizer;
}

/// Threads and scratch memory.
class Machine {
 public:
  explicit Machine(const ModelOptions& options)
      : executor_(make_executor(options.threads)), context_(*executor_, *options.kernels) {}

  Context& context() noexcept { return context_; }

 private:
  std::unique_ptr<Executor> executor_;
  Context context_;
};

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_
