// A whole decoder in someone else's program: mla-embed-decoder MODEL_DIR PROMPT

#include <iostream>
#include <mla/model/decoder_model.hpp>
#include <mla/model/generate.hpp>
#include <mla/model/sampler.hpp>
#include <mla/text/streaming_decoder.hpp>
#include <string>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/run_program.hpp"

namespace {

void run(const std::vector<std::string>& arguments) {
  const std::string directory = arguments.empty() ? "models/tiny-shakespeare-v3" : arguments[0];
  const mla::DecoderModel model = mla::DecoderModel::load(directory);  // maps the files
  const mla::Tokenizer tokenizer(directory);

  // The latent caches of one text.
  mla::DecoderState state(model.config(), mla::CacheFormat::bfloat16);
  mla::Sampler sampler(model.vocab_size(), {.temperature = 0.8, .top_p = 0.95, .seed = 1});
  mla::Context context;  // threads, instruction set, scratch memory
  mla::StreamingDecoder text(tokenizer);
  mla::GenerationOptions options;
  options.max_tokens = 60;
  options.on_token = [&](mla::TokenId token) {
    std::cout << text.push(token) << std::flush;
    return true;  // go on
  };
  const auto prompt = tokenizer.encode(arguments.size() > 1 ? arguments[1] : "ROMEO:");
  const auto result = mla::generate(model, state, prompt, sampler, context, options);
  std::cout << text.finish() << "\n(" << result.generated_tokens << " tokens)" << std::endl;
  if (!std::cout) mla::throw_runtime("cannot write to standard output");
}

}  // namespace

int main(int argc, char** argv) {
  const auto parse = [](const auto& words) { return mla::programs::plain_arguments(words, 2); };
  return mla::programs::run_program("mla-embed-decoder",
                                    "usage: mla-embed-decoder [MODEL_DIR [PROMPT]]\n", argc, argv,
                                    parse, run);
}
