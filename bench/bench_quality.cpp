// What quantised weights cost a model, on a text:
//   bench_quality MODEL_DIR IDS [TOKENS]   IDS: a file with the tensor validation.input_ids
// Windows of 256 tokens, each behind BOS, in float32 arithmetic. Against the model as it is:
// increase of the loss (nats per token), the Kullback-Leibler divergence of the distributions, and
// how often both have the same best token.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mla/io/quantise.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/read_model_config.hpp"

namespace mla::bench {
namespace {

constexpr Index kWindow = 256;

// log p of all tokens, [tokens, vocab_size].
using LogProbabilities = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

LogProbabilities log_probabilities(const DecoderModel& model, std::span<const TokenId> text) {
  Context context;
  LogProbabilities all(std::ssize(text), model.vocab_size());
  for (Index first = 0; first < std::ssize(text); first += kWindow) {
    std::vector<TokenId> input = {model.config().bos_token_id.value()};
    const auto window = text.subspan(static_cast<std::size_t>(first), kWindow);
    input.insert(input.end(), window.begin(), window.end() - 1);
    DecoderState state(model.config(), CacheFormat::float32);
    RowMajorMatrix logits(kWindow, model.vocab_size());
    model.forward(input, state, logits, context);
    for (Index t = 0; t < kWindow; ++t) {
      const Eigen::RowVectorXd row = logits.row(t).cast<double>();
      const double peak = row.maxCoeff();
      all.row(first + t) = row.array() - peak - std::log((row.array() - peak).exp().sum());
    }
  }
  return all;
}

double loss_of(const LogProbabilities& p, std::span<const TokenId> text) {
  double sum = 0.0;
  for (Index t = 0; t < p.rows(); ++t) sum -= p(t, text[static_cast<std::size_t>(t)]);
  return sum / static_cast<double>(p.rows());
}

void print_row(const char* name, const LogProbabilities& exact, const LogProbabilities& p,
               std::span<const TokenId> text) {
  const auto tokens = static_cast<double>(p.rows());
  Index agreed = 0;
  for (Index t = 0; t < p.rows(); ++t) {
    Index best = 0, other = 0;
    exact.row(t).maxCoeff(&best);
    p.row(t).maxCoeff(&other);
    agreed += best == other;
  }
  const double divergence = (exact.array().exp() * (exact - p).array()).sum() / tokens;
  std::printf("| %-32s | %+.4f | %.5f | %.2f %% |\n", name, loss_of(p, text) - loss_of(exact, text),
              divergence, 100.0 * static_cast<double>(agreed) / tokens);
}

struct Row {
  const char* name;
  QuantisationPolicy policy;
};

// Routed experts only; or all that the default policy has but the head.
QuantisationPolicy only(const WeightScheme& scheme, bool experts) {
  return [=, usual = default_policy(WeightFormat::int8)](std::string_view name) {
    const bool wanted = experts ? name.find(".experts.") != name.npos
                                : usual(name) && name.find("head") == name.npos;
    return wanted ? std::optional(scheme) : std::nullopt;
  };
}

std::vector<Row> rows() {
  const WeightScheme int8 = {WeightFormat::int8, 1, 0}, int4 = {WeightFormat::int4, 1, 32};
  return {{"int8 row, experts", only(int8, true)},
          {"int8 row, linear", only(int8, false)},
          {"int8, default policy", default_policy(WeightFormat::int8)},
          {"int8 g32, linear", only({WeightFormat::int8, 1, 32}, false)},
          {"int4 g32, experts", only(int4, true)},
          {"int4 g32, linear", only(int4, false)},
          {"int4, default policy", default_policy(WeightFormat::int4)},
          {"int4 g128, linear", only({WeightFormat::int4, 1, 128}, false)}};
}

void run(const std::string& directory, const std::string& ids, Index tokens) {
  const ModelConfig config = load_model_config(directory);
  const SafetensorsFile file(ids);
  std::span<const TokenId> text = file.tensor("validation.input_ids").values<std::int32_t>();
  text =
      text.first(static_cast<std::size_t>(std::min(tokens, std::ssize(text)) / kWindow * kWindow));
  const auto exact = log_probabilities(DecoderModel::load(directory), text);
  std::printf("loss %.5f over %td tokens\n", loss_of(exact, text), std::ssize(text));
  for (const Row& row : rows()) {
    const DecoderModel model =
        DecoderModel::load(config, quantise(Checkpoint(directory), row.policy));
    print_row(row.name, exact, log_probabilities(model, text), text);
  }
  for (const char* copy : {"-fp8", "-fp8-ue8m0", "-int4"})  // as published, where they are
    if (std::filesystem::exists(directory + copy))
      print_row(copy + 1, exact, log_probabilities(DecoderModel::load(directory + copy), text),
                text);
}

}  // namespace
}  // namespace mla::bench

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: bench_quality MODEL_DIR IDS [TOKENS]\n"), 2;
  try {
    mla::bench::run(argv[1], argv[2], argc > 3 ? std::atol(argv[3]) : 8192);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "bench_quality: %s\n", error.what()), 1;
  }
}
