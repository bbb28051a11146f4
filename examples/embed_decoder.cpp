// A whole decoder in someone else's program: mla-embed-decoder MODEL_DIR PROMPT

#include <exception>
#include <iostream>
#include <mla/model/decoder_model.hpp>
#include <mla/model/generate.hpp>
#include <mla/model/sampler.hpp>
#include <mla/text/streaming_decoder.hpp>
#include <string>

int main(int argc, char** argv) try {
  const std::string directory = argc > 1 ? argv[1] : "models/tiny-shakespeare-v3";
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
  const auto prompt = tokenizer.encode(argc > 2 ? argv[2] : "ROMEO:");
  const auto result = mla::generate(model, state, prompt, sampler, context, options);
  std::cout << text.finish() << "\n(" << result.generated_tokens << " tokens)" << std::endl;
  return std::cout ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "mla-embed-decoder: " << error.what() << std::endl;
  return 1;
}
