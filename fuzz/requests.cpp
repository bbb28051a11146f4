// The body of a request to mla-server; its first byte chooses the endpoint. Whatever is in it, the
// server has prompts of known tokens, or an error of the API that says what is wrong.

#include "requests.hpp"

#include "fuzz.hpp"
#include "mla/text/tokenizer.hpp"

namespace {

mla::Tokenizer small_tokenizer() {
  nlohmann::json vocab = {{"ab", 256}, {"abc", 257}, {"\u0120a", 258}, {"<s>", 259}};
  for (int byte = 0; byte < 256; ++byte)
    vocab[mla::byte_level_text(std::string(1, static_cast<char>(byte)))] = byte;
  const nlohmann::json json = {
      {"version", "1.0"},
      {"added_tokens", {{{"id", 259}, {"content", "<s>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", "\u0120 a"}}}}};
  mla::fuzz::MemoryDirectory directory({"tokenizer.json", "tokenizer_config.json"});
  directory.write(0, json.dump());
  directory.write(1, R"({"bos_token": "<s>", "add_bos_token": true})");
  return mla::Tokenizer(directory.path());
}

void check_prompt(const mla::server::Prompt& prompt) {
  prompt.sampling.validate();
  mla::fuzz::check(prompt.choices >= 1 && prompt.max_tokens >= 1, "counts are positive");
  for (const std::string& stop : prompt.stop)
    mla::fuzz::check(!stop.empty(), "a stop string has characters");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mla::Tokenizer tokenizer = small_tokenizer();
  static const mla::server::ChatFormat format = {.chat_template =
                                                     mla::ChatTemplate(mla::server::kPlainChat)};
  static const mla::server::RequestContext context = {tokenizer, "m", format, 1000, 1};
  const std::string_view input = mla::fuzz::text_of(data, size);
  if (input.empty()) return 0;
  const std::string_view body = input.substr(1);
  try {
    switch (input[0] % 3) {
      case 0:
        for (const auto& prompt : read_completion_request(body, context).prompts)
          check_prompt(prompt);
        break;
      case 1:
        for (const auto& prompt : read_chat_request(body, context).prompts) check_prompt(prompt);
        break;
      default:
        read_tokenize_request(body, context);
    }
  } catch (const mla::server::ApiError& error) {
    mla::fuzz::check(error.status() == 400 || error.status() == 404, "it is the client's error");
    mla::fuzz::check(*error.what() != '\0', "every error says something");
  }
  return 0;
}
