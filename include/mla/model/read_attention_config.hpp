#ifndef MLA_MODEL_READ_ATTENTION_CONFIG_HPP_
#define MLA_MODEL_READ_ATTENTION_CONFIG_HPP_

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mla/core/attention_config.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/model/families/families.hpp"

namespace mla {

namespace detail {

inline bool has_name(ConfigKeys names, std::string_view name) {
  return std::ranges::count(names, name) > 0;
}

/// The first of `architectures` that `known` has; empty: there is none.
inline std::string known_architecture(const ConfigReader& config, ConfigKeys known) {
  if (!config.find("architectures")) return {};
  for (const nlohmann::json& name : config.array("architectures")) {
    const std::string& text = json_string(name, config.where() + "architectures");
    if (has_name(known, text)) return text;
  }
  return {};
}

inline void check_architecture(const ConfigReader& config, ConfigKeys known) {
  if (!config.find("architectures") || config.array("architectures").empty() ||
      !known_architecture(config, known).empty())
    return;
  std::string names;
  for (const std::string_view name : known)
    names += (names.empty() ? "" : ", ") + std::string(name);
  config.fail("architectures = ", json_text(*config.find("architectures")),
              " is not supported with this model_type; known are ", names);
}

/// What is read of a config.json: a decoder, perhaps within a larger model.
class DecoderConfig {
 public:
  DecoderConfig(const nlohmann::json& json, const std::string& origin,
                std::span<const Family> families)
      : part_(part_of(ConfigReader(json, origin + ": "))),
        nested_(part_ ? nested_config(ConfigReader(json, origin + ": "), *part_)
                      : nlohmann::json()),
        config_(part_ ? *nested_ : json,
                origin + ": " + (part_ ? part_->config_key + std::string(".") : "")),
        family_(family_of(config_, families)) {
    check_architecture(config_, family_.architectures);
    config_.refuse_keys_besides({families::kCommonKeys, family_.keys}, true,
                                ": it may change what the model computes");
  }

  const ConfigReader& config() const noexcept { return config_; }
  const Family& family() const noexcept { return family_; }
  const TextPart* part() const noexcept { return part_; }

  AttentionConfig attention() const {
    AttentionConfig attention = family_.read_attention(config_);
    try {
      attention.validate();
    } catch (const std::invalid_argument& error) {
      config_.fail(error.what());
    }
    return attention;
  }

 private:
  static const TextPart* part_of(const ConfigReader& config) {
    if (!config.find("model_type")) return nullptr;
    const std::string& type = config.string("model_type");
    for (const TextPart& part : kTextParts)
      if (has_name(part.model_types, type)) {
        check_architecture(config, part.architectures);
        config.refuse_keys_besides({families::kCommonKeys, part.keys}, true,
                                   ": it may change what the model computes");
        return &part;
      }
    return nullptr;
  }

  // The decoder's own configuration, completed.
  static nlohmann::json nested_config(const ConfigReader& config, const TextPart& part) {
    const ConfigReader checked = config.object(part.config_key);
    nlohmann::json nested = checked.json();
    if (!checked.find("model_type")) nested["model_type"] = part.model_type;
    const JsonDocument defaults(parse_json(part.defaults, "defaults"));
    for (const auto& [key, value] : (*defaults).items())
      if (!checked.find(key.c_str())) nested[key] = value;
    return nested;
  }

  static const Family& family_of(const ConfigReader& config, std::span<const Family> families) {
    if (!config.find("model_type"))
      for (const Family& family : families)
        if (family.by_architecture && !known_architecture(config, family.architectures).empty())
          return family;
    const std::string& type = config.string("model_type");
    std::string known;
    for (const Family& family : families) {
      if (has_name(family.model_types, type)) return family;
      for (const std::string_view name : family.model_types)
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    for (const RefusedFamily& refused : kRefusedFamilies)
      if (refused.model_type == type)
        config.fail("model_type = ", type, " is not supported: ", refused.reason);
    config.fail("model_type = ", type, " is not supported; known are ", known);
  }

  const TextPart* part_;
  JsonDocument nested_;  // null where the decoder is all
  ConfigReader config_;
  const Family& family_;
};

}  // namespace detail

/// The attention of a config.json of one of `families`. The norms' eps is 1e-6 whatever
/// rms_norm_eps says, as in the published code. Throws std::runtime_error beginning with `origin`,
/// the file's path, and naming the key and its value when a key is missing, has the wrong type, or
/// is not understood.
inline AttentionConfig read_attention_config(const nlohmann::json& json,
                                             const std::string& origin = "config.json",
                                             std::span<const Family> families = kFamilies) {
  return detail::DecoderConfig(json, origin, families).attention();
}

/// Reads config.json in a model's directory.
inline AttentionConfig load_attention_config(const std::filesystem::path& directory,
                                             std::span<const Family> families = kFamilies) {
  const auto path = directory / "config.json";
  return read_attention_config(*JsonDocument(parse_json_file(path)), path.string(), families);
}

}  // namespace mla

#endif  // MLA_MODEL_READ_ATTENTION_CONFIG_HPP_
