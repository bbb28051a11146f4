// config.json and generation_config.json of a model: two texts in one input.

#include "fuzz.hpp"
#include "mla/model/read_attention_config.hpp"
#include "mla/model/read_model_config.hpp"
#include "mla/ops/rope.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryDirectory directory({"config.json", "generation_config.json"});
  const auto parts = mla::fuzz::split(mla::fuzz::text_of(data, size), 2);
  directory.write(0, parts[0]);
  directory.write(1, parts[1].empty() ? "{}" : parts[1]);
  mla::fuzz::only_documented_errors([&] {
    const mla::AttentionConfig config = mla::load_attention_config(directory.path());
    config.validate();
    if (config.qk_rope_head_dim > 1024) return;  // right, but slow
    const mla::RotaryEmbedding rotary(config);
    for (const double f : rotary.inv_freq())
      mla::fuzz::check(f >= 0.0 && f <= 1.0, "angles are between 0 and 1 a position");
    mla::fuzz::check(mla::softmax_scale(config) > 0.0, "the softmax scale is positive");
  });
  mla::fuzz::only_documented_errors([&] { mla::load_model_config(directory.path()).validate(); });
  return 0;
}
