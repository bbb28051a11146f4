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
#include "progress.hpp"

#include "mla/attention/context.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"
#include "mla/core/float16.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/simd/kernels.hpp"
#include "mla/text/tokenizer.hpp"

namespace mla::programs {

/// What all programs that run a model can be told of how to run it.
struct ModelOptions {
  std::string directory;
  int threads = 1;
  Mode mode = Mode::automatic;
  DType cache = DType::float32;
  const simd::Kernels* kernels = &simd::kernels();

  static constexpr std::array<std::string_view, 4> kNames = {"--threads", "--mode", "--cache",
                                                             "--isa"};
};

inline Mode parse_mode(const std::string& name) {
  if (name == "absorbed") return Mode::absorbed;
  if (name == "decompressed") return Mode::decompressed;
  require(name == "automatic", "--mode must be absorbed, decompressed or automatic, got ", name);
  return Mode::automatic;
}

inline DType parse_cache(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    if (name == name_of(dtype)) return dtype;
  throw_invalid("--cache must be f32, bf16 or f16, got ", name);
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
  if (const auto name = line.text("--cache")) options.cache = parse_cache(*name);
  if (const auto name = line.text("--isa")) options.kernels = parse_isa(*name);
  return options;
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

/// Calls visit(T()) with the type of element that `cache` names.
template <class Visit>
void with_cache_type(DType cache, const Visit& visit) {
  switch (cache) {
    case DType::bfloat16:
      return visit(bfloat16());
    case DType::float16:
      return visit(float16());
    default:
      return visit(0.0f);
  }
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_MODEL_OPTIONS_HPP_
