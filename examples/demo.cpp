// mla-demo MODEL_DIR: runs the attention of every layer of a checkpoint, by prefill of a whole text
// and by decoding it token by token over the latent cache, compares the two, and shows what latent
// caching saves.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <mla/io/checkpoint.hpp>
#include <mla/io/load_attention_weights.hpp>
#include <mla/io/safetensors.hpp>
#include <mla/mla.hpp>
#include <mla/model/read_model_config.hpp>
#include <string>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/printable.hpp"
#include "programs/run_program.hpp"

namespace {

using mla::AttentionForm;
using mla::Index;
using mla::RowMajorMatrix;

using Cache = mla::LatentKVCache<mla::bfloat16>;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// The embeddings [tokens, hidden_size] of a text that the model comes with.
RowMajorMatrix embed_text(const std::string& directory, const mla::Checkpoint& checkpoint,
                          Index hidden_size) {
  const mla::SafetensorsFile goldens(directory + "/goldens.safetensors");
  const char* text = goldens.contains("long.input_ids") ? "long.input_ids" : "short.input_ids";
  const auto tokens = goldens.tensor(text).values<std::int32_t>();
  const auto& table = checkpoint.tensor("model.embed_tokens.weight");
  const mla::WeightView embedding =
      checkpoint.matrix("model.embed_tokens.weight", table.shape.at(0), hidden_size);
  RowMajorMatrix x(static_cast<Index>(tokens.size()), hidden_size);
  for (Index t = 0; t < x.rows(); ++t) {
    const Index token = tokens[static_cast<std::size_t>(t)];
    mla::require(token >= 0 && token < embedding.rows, "token ", token,
                 " is not in the vocabulary");
    info_of(embedding.format)
        .widen(embedding.row_range(token, 1), mla::mutable_view_of(x).row_range(t, 1));
  }
  return x;
}

// Prefill and token-by-token decoding of x [tokens, hidden_size] by one layer.
struct LayerRun {
  RowMajorMatrix prefill;
  RowMajorMatrix decode;
  double prefill_ms = 0.0;
  double decode_ms = 0.0;  // of all tokens together
  std::size_t cache_bytes = 0;
};

LayerRun run_layer(const mla::MultiheadLatentAttention& attention, const RowMajorMatrix& x,
                   AttentionForm prefill_mode, mla::Context& context) {
  LayerRun run;
  run.prefill.resize(x.rows(), x.cols());
  run.decode.resize(x.rows(), x.cols());

  Cache prefilled(attention.config());
  auto start = std::chrono::steady_clock::now();
  attention.forward(x, prefilled, run.prefill, context, {.mode = prefill_mode});
  run.prefill_ms = milliseconds_since(start);

  Cache grown(attention.config());
  start = std::chrono::steady_clock::now();
  for (Index t = 0; t < x.rows(); ++t)
    attention.forward(x.row(t), grown, run.decode.row(t), context,
                      {.mode = AttentionForm::absorbed});
  run.decode_ms = milliseconds_since(start);
  run.cache_bytes = grown.bytes_used();
  return run;
}

// NaN where one of them has NaN.
float largest_difference(const RowMajorMatrix& a, const RowMajorMatrix& b) {
  return (a - b).cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
}

// Prefill is absorbed once (the form that decodes) and decompressed once. Returns the largest
// difference between decoding and prefill, over all layers, relative to the largest output.
float run_all_layers(const std::string& directory) {
  const mla::Checkpoint checkpoint(directory);
  const mla::ModelConfig config = mla::load_model_config(directory);
  const Index hidden_size = config.attention.hidden_size;
  RowMajorMatrix x = embed_text(directory, checkpoint, hidden_size);
  mla::SerialExecutor one_thread;
  mla::Context context(one_thread);

  std::printf("%s: %td layers, %td heads, latent %td + rotary key %td; a text of %td tokens\n",
              mla::programs::printable(directory).c_str(), config.num_hidden_layers,
              config.attention.num_attention_heads, config.attention.kv_lora_rank,
              config.attention.qk_rope_head_dim, x.rows());
  std::printf("kernels: %s, one thread; weights as in the checkpoint, cache bfloat16\n\n",
              std::string(mla::simd::name_of(context.kernels().isa)).c_str());
  std::printf("           us a token   cache bytes   largest difference of decoding to prefill\n");
  std::printf("layer  prefill  decode      a token   in the same form   in the other form\n");

  float worst = 0.0f;  // NaN as soon as one difference is
  for (Index layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer);
    const mla::RmsNorm norm(checkpoint.vector(prefix + ".input_layernorm.weight", hidden_size),
                            1e-6);
    const mla::MultiheadLatentAttention attention(
        config.attention,
        load_attention_weights(checkpoint, prefix + ".self_attn", config.attention));

    RowMajorMatrix normalised = x;
    norm.forward({normalised.data(), normalised.rows(), normalised.cols()}, context);
    const LayerRun absorbed = run_layer(attention, normalised, AttentionForm::absorbed, context);
    const LayerRun mixed = run_layer(attention, normalised, AttentionForm::decompressed, context);

    const float size = mixed.decode.cwiseAbs().maxCoeff();
    const float same_form = largest_difference(absorbed.prefill, absorbed.decode) / size;
    const float other_form = largest_difference(mixed.prefill, mixed.decode) / size;
    for (const float difference : {same_form, other_form})
      if (!std::isnan(worst) && !(difference <= worst)) worst = difference;
    const auto tokens = static_cast<double>(x.rows());
    std::printf("%5td  %7.1f %7.1f %12td   %16.2g   %17.2g\n", layer,
                1e3 * mixed.prefill_ms / tokens, 1e3 * mixed.decode_ms / tokens,
                static_cast<Index>(mixed.cache_bytes) / x.rows(), static_cast<double>(same_form),
                static_cast<double>(other_form));
    x += mixed.prefill;  // the residual stream; the MLPs between the layers are left out
  }
  return worst;
}

// Cache bytes a token, over all layers, if the same heads were cached in other ways.
void print_cache_row(const char* name, const mla::AttentionConfig& c, Index layers) {
  const Index element = static_cast<Index>(sizeof(mla::bfloat16));
  const Index head = layers * element * (c.qk_head_dim() + c.v_head_dim);
  const Index group_heads = std::max<Index>(2, c.num_attention_heads / 8);
  const Index latent = layers * static_cast<Index>(Cache(c).bytes_per_token());
  const Index all_heads = c.num_attention_heads * head;
  std::printf("%-22s %6td %10td %10td %10td %10td   %5.1f x\n", name, layers, latent, all_heads,
              group_heads * head, head,
              static_cast<double>(all_heads) / static_cast<double>(latent));
}

void print_cache_table(const std::string& directory) {
  const mla::ModelConfig own = mla::load_model_config(directory);
  std::printf("\nbytes of cache a token, all layers, bfloat16 (same heads and head sizes)\n");
  std::printf("%-22s %6s %10s %10s %10s %10s   %s\n", "", "layers", "MLA", "MHA", "GQA", "MQA",
              "MHA / MLA");
  print_cache_row("this model", own.attention, own.num_hidden_layers);
  print_cache_row("DeepSeek-V3", mla::AttentionConfig::deepseek_v3(), 61);
  print_cache_row("DeepSeek-V2-Lite", mla::AttentionConfig::deepseek_v2_lite(), 27);
  print_cache_row("Kimi K2", mla::AttentionConfig::kimi_k2(), 61);
  print_cache_row("lesson variant", mla::AttentionConfig::lesson(), 1);
  std::printf(
      "\nMHA: a key and a value for every head. GQA: for one head in 8 (at least 2). MQA: for "
      "one.\n"
      "Lesson variant: the MLA layer of common teaching implementations, with a rotary key for\n"
      "every head, half-split rotary pairs and no query norm (AttentionConfig::lesson()). It\n"
      "saves little: the \"4x\" that is stated for it counts the latent without those keys.\n");
}

std::string parse(const std::vector<std::string>& words) {
  const auto arguments = mla::programs::plain_arguments(words, 1);
  mla::require(!arguments.empty(), "MODEL_DIR is needed");
  return arguments[0];
}

void run(const std::string& directory) {
  const float worst = run_all_layers(directory);
  print_cache_table(directory);
  constexpr float kTolerance = 1e-5f;  // float32 arithmetic in two orders
  const bool agree = worst < kTolerance;
  std::printf("\nprefill and decoding %s: largest difference %.2g of the largest output\n",
              agree ? "agree" : "DISAGREE", static_cast<double>(worst));
  if (!agree) mla::throw_runtime("prefill and decoding disagree");
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program("mla-demo", "usage: mla-demo MODEL_DIR\n", argc, argv, parse,
                                    run);
}
