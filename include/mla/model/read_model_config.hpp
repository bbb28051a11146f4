#ifndef MLA_MODEL_READ_MODEL_CONFIG_HPP_
#define MLA_MODEL_READ_MODEL_CONFIG_HPP_

#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>

#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/model/families/families.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/read_attention_config.hpp"

namespace mla {

/// The decoder of a config.json of one of `families`, or of a larger model with one of them inside
/// (kTextParts). Throws std::runtime_error beginning with `origin`, the file's path, and naming the
/// key and its value when a key is missing, has the wrong type, or is not understood.
inline ModelConfig read_model_config(const nlohmann::json& json,
                                     const std::string& origin = "config.json",
                                     std::span<const Family> families = kFamilies) {
  const detail::DecoderConfig file(json, origin, families);
  const ConfigReader& config = file.config();
  ModelConfig model;
  model.attention = file.attention();
  model.model_type = config.find("model_type") ? config.string("model_type")
                                               : std::string(file.family().model_types.front());
  file.family().read_model(config, model);
  if (const TextPart* part = file.part()) {
    model.names.prefix = part->prefix;
    for (const std::string_view name : part->other_parts)
      model.names.other_parts.emplace_back(name);
  }
  try {
    model.validate();
  } catch (const std::invalid_argument& error) {
    config.fail(error.what());
  }
  return model;
}

/// Reads config.json in a model's directory. Where there is a generation_config.json too, the
/// tokens that end a text are those that it names.
inline ModelConfig load_model_config(const std::filesystem::path& directory,
                                     std::span<const Family> families = kFamilies) {
  const auto path = directory / "config.json";
  ModelConfig model =
      read_model_config(*JsonDocument(parse_json_file(path)), path.string(), families);
  const auto generation = directory / "generation_config.json";
  if (!std::filesystem::exists(generation)) return model;
  const JsonDocument json(parse_json_file(generation));
  const ConfigReader config(*json, generation.string() + ": ");
  if (config.find("eos_token_id")) model.eos_token_ids = families::read_eos(config);
  return model;
}

}  // namespace mla

#endif  // MLA_MODEL_READ_MODEL_CONFIG_HPP_
