// The attention layer alone, on the weights of a published checkpoint: mla-attention-layer
// MODEL_DIR

#include <cstdio>
#include <mla/io/load_attention_weights.hpp>
#include <mla/mla.hpp>
#include <mla/model/read_attention_config.hpp>
#include <string>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/run_program.hpp"

namespace {

void run(const std::vector<std::string>& arguments) {
  const std::string directory = arguments.empty() ? "models/tiny-shakespeare-v3" : arguments[0];
  const mla::Checkpoint checkpoint(directory);  // maps the files
  const mla::AttentionConfig config = mla::load_attention_config(directory);
  const mla::MultiheadLatentAttention attention(
      config, mla::load_attention_weights(checkpoint, "model.layers.0.self_attn", config));

  mla::LatentKVCache<mla::bfloat16> cache(config);  // one for each text and layer
  cache.reserve(11);
  mla::Context context;  // threads, instruction set, scratch memory
  const mla::RowMajorMatrix prompt = mla::RowMajorMatrix::Random(10, config.hidden_size);
  mla::RowMajorMatrix out(10, config.hidden_size);
  attention.forward(prompt, cache, out, context);                // prefill: ten tokens
  attention.forward(prompt.row(9), cache, out.row(9), context);  // decoding: one
  cache.truncate(10);                                            // and it never happened

  std::printf("%td tokens, %zu bytes of cache per token; first output %g\n", cache.size(),
              cache.bytes_per_token(), static_cast<double>(out(0, 0)));
}

}  // namespace

int main(int argc, char** argv) {
  const auto parse = [](const auto& words) { return mla::programs::plain_arguments(words, 1); };
  return mla::programs::run_program(
      "mla-attention-layer", "usage: mla-attention-layer [MODEL_DIR]\n", argc, argv, parse, run);
}
