#ifndef MLA_IO_SAVE_CHECKPOINT_HPP_
#define MLA_IO_SAVE_CHECKPOINT_HPP_

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/json.hpp"
#include "mla/io/replacement_file.hpp"
#include "mla/io/safetensors_writer.hpp"

namespace mla {

namespace detail {

/// The quantization_config of compressed-tensors for the matrices of a checkpoint.
class CompressedTensorsConfig {
 public:
  explicit CompressedTensorsConfig(const Checkpoint& checkpoint) {
    for (const std::string& name : checkpoint.names()) {
      const SafetensorsTensor& tensor = checkpoint.tensor(name);
      if (const auto format = quantised_format_of(tensor))
        add_quantised(checkpoint, tensor, *format);
      else if (const std::string_view suffix = ".weight"; name.ends_with(suffix) &&
                                                          tensor.shape.size() == 2 &&
                                                          !name.ends_with("embed_tokens.weight"))
        plain_.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }

  /// null where nothing is quantised.
  nlohmann::json json() const {
    if (groups_.empty()) return nullptr;
    const auto largest = std::ranges::max_element(
        groups_, {}, [](const Group& group) { return group.modules.size(); });
    nlohmann::json groups = nlohmann::json::object();
    for (const Group& group : groups_) {
      nlohmann::json json = {{"input_activations", nullptr},
                             {"output_activations", nullptr},
                             {"weights", weights_json(group.scheme)},
                             {"format", format_name(group)}};
      // Modules that have a scheme of their own are named, all others follow the largest group.
      if (&group == &*largest)
        json["targets"] = {"Linear"};
      else
        json["targets"] = group.modules;
      groups["group_" + std::to_string(groups.size())] = std::move(json);
    }
    return {{"quant_method", "compressed-tensors"},
            {"quantization_status", "compressed"},
            {"format", groups_.size() == 1 ? format_name(groups_[0]) : "mixed-precision"},
            {"config_groups", std::move(groups)},
            {"ignore", plain_},
            {"kv_cache_scheme", nullptr}};
  }

 private:
  struct Group {
    WeightScheme scheme;
    bool global = false;  // NVFP4, not MXFP4
    std::vector<std::string> modules;
  };

  void add_quantised(const Checkpoint& checkpoint, const SafetensorsTensor& codes,
                     WeightFormat format) {
    std::string name = codes.name;
    if (const std::string_view packed = "_packed"; name.ends_with(packed))
      name.resize(name.size() - packed.size());
    const Index per_element = codes.shape.at(1);
    Index cols = per_element;
    if (format == WeightFormat::fp4_e2m1) cols = 2 * per_element;
    if (format == WeightFormat::int4) cols = stored_cols(checkpoint.tensor(name + "_shape"));
    const WeightScheme scheme = checkpoint.scheme_of_matrix(name, format, codes.shape.at(0), cols);
    const bool global = checkpoint.contains(name + "_global_scale");
    auto group = std::ranges::find_if(groups_, [&](const Group& other) {
      return other.scheme == scheme && other.global == global;
    });
    if (group == groups_.end()) group = groups_.insert(groups_.end(), {scheme, global, {}});
    group->modules.push_back(name.substr(0, name.rfind('.')));
  }

  static Index stored_cols(const SafetensorsTensor& shape) {
    if (shape.shape != std::vector<Index>{2})
      throw_runtime("tensor ", shape.name, " has shape ", shape_text(shape.shape),
                    ", expected [2]");
    if (shape.dtype == SafetensorsDType::int64) return shape.values<std::int64_t>()[1];
    return shape.values<std::int32_t>()[1];
  }

  static const char* format_name(const Group& group) {
    switch (group.scheme.format) {
      case WeightFormat::fp8_e4m3:
        return "float-quantized";
      case WeightFormat::int8:
        return "int-quantized";
      case WeightFormat::int4:
        return "pack-quantized";
      case WeightFormat::fp4_e2m1:
        return group.global ? "nvfp4-pack-quantized" : "mxfp4-pack-quantized";
      case WeightFormat::float32:
      case WeightFormat::bfloat16:
      case WeightFormat::float16:
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
      case WeightFormat::extra:
#endif
        break;
    }
    return "dense";
  }

  static nlohmann::json weights_json(const WeightScheme& scheme) {
    const bool integer = scheme.format == WeightFormat::int8 || scheme.format == WeightFormat::int4;
    nlohmann::json json = {{"num_bits", info_of(scheme.format).bits},
                           {"type", integer ? "int" : "float"},
                           {"symmetric", !scheme.zero_points},
                           {"dynamic", false},
                           {"actorder", nullptr},
                           {"group_size", nullptr},
                           {"block_structure", nullptr},
                           {"observer", "minmax"},
                           {"observer_kwargs", nlohmann::json::object()}};
    if (scheme.block_rows == 0) {
      json["strategy"] = "tensor";
    } else if (scheme.block_rows > 1) {
      json["strategy"] = "block";
      json["block_structure"] = {scheme.block_rows, scheme.block_cols};
    } else if (scheme.block_cols == 0) {
      json["strategy"] = "channel";
    } else {
      json["strategy"] = "group";
      json["group_size"] = scheme.block_cols;
    }
    return json;
  }

  std::vector<Group> groups_;
  std::vector<std::string> plain_;
};

inline void require_new(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder)) throw_runtime(folder.string(), ": exists already");
}

/// A folder that appears with all its files or not at all.
class NewFolder {
 public:
  explicit NewFolder(const std::filesystem::path& path) : path_(path) {
    require_new(path);
    std::error_code error;
    for (int number = 1;; ++number) {  // the first that nobody else has
      partial_ = path.string() + ".partial" + std::to_string(number);
      if (std::filesystem::create_directory(partial_, error)) return;
      if (error) throw_runtime(path.string(), ": cannot create: ", error.message());
    }
  }
  ~NewFolder() {
    std::error_code ignored;
    if (!committed_) std::filesystem::remove_all(partial_, ignored);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const std::filesystem::path& partial() const noexcept { return partial_; }

  void commit() {
    std::error_code error;
    std::filesystem::rename(partial_, path_, error);
    if (error) throw_runtime(path_.string(), ": cannot create: ", error.message());
    committed_ = true;
  }

 private:
  std::filesystem::path path_, partial_;
  bool committed_ = false;
};

/// Tensors by the size of their elements, largest first, then by name: each begins at a multiple of
/// it, so that all of them can be mapped.
inline std::vector<const SafetensorsTensor*> tensors_to_save(const Checkpoint& checkpoint) {
  std::vector<const SafetensorsTensor*> tensors;
  for (const std::string& name : checkpoint.names()) tensors.push_back(&checkpoint.tensor(name));
  std::ranges::stable_sort(tensors, std::greater(),
                           [](const SafetensorsTensor* tensor) { return bytes_of(tensor->dtype); });
  return tensors;
}

inline void write_tensors(const Checkpoint& checkpoint, const std::filesystem::path& path) {
  const std::string_view inverse = "_scale_inv";
  std::vector<SafetensorsSource> sources;
  const std::vector<const SafetensorsTensor*> tensors = tensors_to_save(checkpoint);
  for (const SafetensorsTensor* tensor : tensors) {
    sources.push_back({tensor->name, tensor->dtype, tensor->shape});
    std::string& name = sources.back().name;
    if (name.ends_with(inverse)) name.resize(name.size() - std::string_view("_inv").size());
  }
  const std::string header = safetensors_header(sources, {{"format", "pt"}});
  ReplacementFile file(path);
  file.write(std::as_bytes(std::span(header)));
  for (const SafetensorsTensor* tensor : tensors) {
    file.write(tensor->bytes);
    checkpoint.release(*tensor);
  }
  file.commit();
}

inline bool holds_weights(const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  for (const char* end : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json",
                          ".pt", ".pth", ".gguf"})
    if (name.ends_with(end)) return true;
  return false;
}

}  // namespace detail

/// Writes the model of a folder, quantised or as it was, to a new folder: model.safetensors, whose
/// tensors have the layouts of compressed-tensors, config.json with the quantization_config that
/// belongs to them, and copies of the other files, tokenizer.json among them. It is loaded by
/// mapping, and other programs read it. `folder` appears as a whole or not at all, also when the
/// disk is full; only a program that is killed leaves `folder`.partial and a number behind. Throws
/// std::runtime_error with the path and the reason, also where `folder` exists.
inline void save_checkpoint(const Checkpoint& checkpoint, const std::filesystem::path& folder) {
  const std::filesystem::path source = checkpoint.path();
  if (!std::filesystem::is_directory(source))
    throw_runtime(checkpoint.path(), ": not the folder of a model, which alone can be saved");
  detail::NewFolder target(folder);
  detail::write_tensors(checkpoint, target.partial() / "model.safetensors");
  nlohmann::json config = parse_json_file(source / "config.json");
  config.erase("quantization_config");
  if (nlohmann::json quantization = detail::CompressedTensorsConfig(checkpoint).json();
      !quantization.is_null())
    config["quantization_config"] = std::move(quantization);
  ReplacementFile file(target.partial() / "config.json");
  const std::string text = config.dump(2) + "\n";
  file.write(std::as_bytes(std::span(text)));
  file.commit();
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    const std::filesystem::path name = entry.path().filename();
    if (!entry.is_regular_file() || name == "config.json" || detail::holds_weights(name)) continue;
    std::error_code error;
    std::filesystem::copy_file(entry.path(), target.partial() / name, error);
    if (error) throw_runtime((folder / name).string(), ": cannot write: ", error.message());
  }
  target.commit();
}

}  // namespace mla

#endif  // MLA_IO_SAVE_CHECKPOINT_HPP_
