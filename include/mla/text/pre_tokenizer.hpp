#ifndef MLA_TEXT_PRE_TOKENIZER_HPP_
#define MLA_TEXT_PRE_TOKENIZER_HPP_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/text/regex.hpp"

namespace mla {

/// `pre_tokenizer` of a tokenizer.json: cuts a text into the words within which tokens are merged.
/// Each step cuts every piece that the steps before it left, matches and what is between them
/// alike; a piece is a subject of its own, of whose neighbours look-arounds see nothing.
///
/// Supported are Split (behavior Isolated), Digits and, as the last one, ByteLevel without
/// add_prefix_space, in a Sequence or alone.
class PreTokenizer {
 public:
  /// Throws std::runtime_error beginning with `where`, naming the type or field that is refused.
  PreTokenizer(const nlohmann::json& value, const std::string& where) {
    add(value, where);
    if (!has_byte_level_) throw_runtime(where, " must end with a ByteLevel");
  }

  /// Calls visit(std::string_view) with the words of `text`, which must be UTF-8, in order; none is
  /// empty.
  template <class Visit>
  void split(std::string_view text, RegexMemory& memory, const Visit& visit) const {
    split_from(0, text, memory, visit);
  }

 private:
  static constexpr std::size_t kMaxSteps = 32;  // each is a level of recursion

  template <class Visit>
  void split_from(std::size_t step, std::string_view text, RegexMemory& memory,
                  const Visit& visit) const {
    if (text.empty()) return;
    if (step == steps_.size()) return visit(text);
    std::size_t done = 0;
    while (const auto match = steps_[step].find(text, done, memory)) {
      split_from(step + 1, text.substr(done, match->begin - done), memory, visit);
      split_from(step + 1, text.substr(match->begin, match->end - match->begin), memory, visit);
      done = match->end;
    }
    split_from(step + 1, text.substr(done), memory, visit);
  }

  void add(const nlohmann::json& value, const std::string& where) {
    const ConfigReader reader(value, where + ".");
    const std::string& type = reader.string("type");
    if (has_byte_level_) throw_runtime(where, ": nothing may follow a ByteLevel, got ", type);
    if (steps_.size() == kMaxSteps) throw_runtime(where, ": more than ", kMaxSteps, " steps");
    if (type == "Sequence")
      add_sequence(reader, where);
    else if (type == "Split")
      add_split(reader, where);
    else if (type == "Digits")
      add_digits(reader, where);
    else if (type == "ByteLevel")
      add_byte_level(reader, where);
    else
      reader.fail("type = ", type,
                  " is not supported; known are Sequence, Split, Digits and ByteLevel");
  }

  void add_sequence(const ConfigReader& reader, const std::string& where) {
    static constexpr std::string_view kKeys[] = {"type", "pretokenizers"};
    reader.refuse_keys_besides({kKeys}, true, "");
    const nlohmann::json* steps = reader.find("pretokenizers");
    if (!steps || !steps->is_array()) reader.fail("pretokenizers must be an array");
    for (std::size_t i = 0; i < steps->size(); ++i)
      add((*steps)[i], where + ".pretokenizers[" + std::to_string(i) + "]");
  }

  void add_split(const ConfigReader& reader, const std::string& where) {
    static constexpr std::string_view kKeys[] = {"type", "pattern", "behavior"};
    reader.refuse_keys_besides({kKeys}, true, "");  // invert false passes
    if (reader.string("behavior") != "Isolated")
      reader.fail("behavior = ", reader.string("behavior"), " is not supported; known is Isolated");
    const ConfigReader pattern = reader.object("pattern");
    static constexpr std::string_view kPatterns[] = {"Regex", "String"};
    pattern.refuse_keys_besides({kPatterns}, false, "");
    if (pattern.contains("Regex") == pattern.contains("String"))
      reader.fail("pattern must have one of Regex and String");
    const bool literal = pattern.contains("String");
    steps_.emplace_back(pattern.string(literal ? "String" : "Regex"), where + ".pattern", literal);
  }

  void add_digits(const ConfigReader& reader, const std::string& where) {
    static constexpr std::string_view kKeys[] = {"type", "individual_digits"};
    reader.refuse_keys_besides({kKeys}, false, "");
    steps_.emplace_back(reader.boolean("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)",
                        where);
  }

  void add_byte_level(const ConfigReader& reader, const std::string& where) {
    static constexpr std::string_view kKeys[] = {"type", "trim_offsets", "use_regex"};
    reader.refuse_keys_besides({kKeys}, true, "");  // add_prefix_space false passes
    if (reader.boolean("add_prefix_space", true))
      reader.fail("add_prefix_space must be false: it is true where a file does not say");
    // The words of GPT-2 (openai/gpt-2, encoder.py).
    if (reader.boolean("use_regex", true))
      steps_.emplace_back(
          R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", where);
    has_byte_level_ = true;
  }

  std::vector<Regex> steps_;
  bool has_byte_level_ = false;
};

}  // namespace mla

#endif  // MLA_TEXT_PRE_TOKENIZER_HPP_
