// tokenizer.json, tokenizer_config.json, generation_config.json and a text to encode: four texts in
// one input. A tokenizer.json that is a JSON object is read as it is, and once more as changes
// (RFC 7396) to one that is right: otherwise no input would get far without a token for every byte.

#include "mla/text/tokenizer.hpp"

#include "fuzz.hpp"

namespace {

nlohmann::json small_tokenizer() {
  nlohmann::json vocab = {{"ab", 256}, {"abc", 257}, {"\u0120a", 258}, {"<s>", 259}};
  for (int byte = 0; byte < 256; ++byte)
    vocab[mla::byte_level_text(std::string(1, static_cast<char>(byte)))] = byte;
  return nlohmann::json{
      {"version", "1.0"},
      {"added_tokens", {{{"id", 259}, {"content", "<s>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", "\u0120 a"}}}}};
}

void use(const mla::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> ids = tokenizer.encode(text, false);
  for (const std::int32_t id : ids)
    mla::fuzz::check(id >= 0 && id < tokenizer.vocab_size(), "ids are of the vocabulary");
  tokenizer.decode(ids, true);
  tokenizer.decode(ids, false);
  tokenizer.encode(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryDirectory directory(
      {"tokenizer.json", "tokenizer_config.json", "generation_config.json"});
  static const nlohmann::json whole = small_tokenizer();
  const auto parts = mla::fuzz::split(mla::fuzz::text_of(data, size), 4);
  for (std::size_t i = 0; i < 3; ++i) directory.write(i, parts[i].empty() ? "{}" : parts[i]);
  mla::fuzz::only_documented_errors([&] { use(mla::Tokenizer(directory.path()), parts[3]); });
  mla::fuzz::only_documented_errors([&] {
    const nlohmann::json changes = mla::parse_json(parts[0], "changes");
    if (!changes.is_object()) return;
    nlohmann::json changed = whole;
    changed.merge_patch(changes);
    directory.write(0, changed.dump());
    use(mla::Tokenizer(directory.path()), parts[3]);
  });
  return 0;
}
