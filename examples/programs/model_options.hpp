#ifndef MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_
#define MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_

#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "command_line.hpp"
#include "isa_names.hpp"
#include "processors.hpp"
#include "progress.hpp"

#include "mla/attention/cost_model.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"
#include "mla/model/decoder_model.hpp"
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
  Mode mode = Mode::automatic;
  const simd::Kernels* kernels = nullptr;
  CacheFormat cache = CacheFormat::float16;

  static constexpr std::array<std::string_view, 5> kNames = {"--threads", "--mode", "--cache",
                                                             "--isa", "--precision"};
};

/// Their lines of the usage texts.
inline std::string model_usage() {
  return "  --threads N             default: all cores; for small models 1\n"
         "  --precision PRECISION   fast: bfloat16 arithmetic where this machine has units for "
         "it,\n"
         "                          a cache of 16 bits (default). exact: both in float32\n"
         "  --mode MODE             absorbed, decompressed or automatic attention (automatic)\n"
         "  --cache TYPE            elements of the latent cache: f32, bf16 or f16\n"
         "  --isa ISA               kernels: " +
         isa_names() + "\n";
}

inline Mode parse_mode(const std::string& name) {
  if (name == "absorbed") return Mode::absorbed;
  if (name == "decompressed") return Mode::decompressed;
  require(name == "automatic", "--mode must be absorbed, decompressed or automatic, got ", name);
  return Mode::automatic;
}

inline CacheFormat parse_cache(const std::string& name) {
  for (const auto format : {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::float16})
    if (name == name_of(format)) return format;
  throw_invalid("--cache must be f32, bf16 or f16, got ", name);
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
  return options;
}

/// "2 threads, amx, bfloat16 arithmetic, bf16 cache"
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
  return text;
}

/// `kNames` of ModelOptions and `own`, for CommandLine.
inline std::vector<std::string_view> with_model_options(std::vector<std::string_view> own) {
  own.insert(own.end(), ModelOptions::kNames.begin(), ModelOptions::kNames.end());
  return own;
}

inline DecoderModel load_model(const ModelOptions& options) {
  if (!std::filesystem::is_directory(options.directory))
    throw_runtime(options.directory, ": not a directory with a model");
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
  static std::unique_ptr<Executor> make_executor(int threads) {
    if (threads > 1) return std::make_unique<EigenExecutor>(threads);
    return std::make_unique<SerialExecutor>();
  }

  std::unique_ptr<Executor> executor_;
  Context context_;
};

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_
