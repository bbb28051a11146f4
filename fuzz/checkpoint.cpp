// A directory with an index of shards, a config.json and a shard: three texts in one input.

#include "mla/io/checkpoint.hpp"

#include "fuzz.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/read_attention_config.hpp"

namespace {

void read_all(const mla::Checkpoint& checkpoint) {
  for (const std::string& name : checkpoint.names()) {
    const std::vector<mla::Index>& shape = checkpoint.tensor(name).shape;
    mla::fuzz::only_documented_errors([&] {
      if (shape.size() == 1) checkpoint.vector(name, shape[0]);
      if (shape.size() == 2 && shape[0] > 0 && shape[1] > 0)
        checkpoint.matrix(name, shape[0], shape[1]);
    });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryDirectory directory(
      {"model.safetensors.index.json", "config.json", "a.safetensors"});
  const auto parts = mla::fuzz::split(mla::fuzz::text_of(data, size), 3);
  for (std::size_t i = 0; i < parts.size(); ++i) directory.write(i, parts[i]);
  mla::fuzz::only_documented_errors([&] {
    const mla::Checkpoint checkpoint(directory.path());
    read_all(checkpoint);
    const mla::AttentionConfig config = mla::load_attention_config(directory.path());
    mla::load_attention_weights(checkpoint, "layer", config, false);
  });
  return 0;
}
