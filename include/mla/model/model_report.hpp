#ifndef MLA_MODEL_MODEL_REPORT_HPP_
#define MLA_MODEL_MODEL_REPORT_HPP_

#include <algorithm>
#include <cstddef>
#include <deque>
#include <exception>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/json.hpp"
#include "mla/io/quantization_config.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/load_decoder_weights.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/read_model_config.hpp"
#include "mla/model/tensor_summary.hpp"

// What a checkpoint is, from its config.json and the headers of its files alone.

namespace mla {

/// What a token takes in a cache of `format`, in bytes over all layers.
struct CacheCost {
  CacheFormat format = CacheFormat::float32;
  Index bytes = 0;             ///< in the layers
  Index prediction_bytes = 0;  ///< for drafts by multi-token prediction besides
  Index multi_head_bytes = 0;  ///< if the layers cached every head's key and value
};

/// A model's directory as it is, whether the model can be run or not.
struct ModelReport {
  std::string directory;
  std::string model_type;                  ///< config.json's; empty where it cannot be read
  std::vector<std::string> architectures;  ///< likewise
  std::optional<ModelConfig> config;       ///< nothing where it is refused
  bool has_prediction = false;             ///< a module for multi-token prediction is in the files
  std::vector<WeightScheme> schemes;       ///< of quantised matrices
  std::vector<TensorGroup> tensors;        ///< that could be read
  std::vector<CacheCost> caches;           ///< one for each format; none without config
  /// Why the model cannot be run: a line each, the first first. Empty: it can, if its numbers are
  /// as they must be.
  std::vector<std::string> refusals;

  bool runs() const noexcept { return refusals.empty(); }
  /// Of all tensors.
  Index weight_bytes() const noexcept {
    Index bytes = 0;
    for (const TensorGroup& group : tensors) bytes += group.bytes;
    return bytes;
  }
  Index parameters() const noexcept {
    Index elements = 0;
    for (const TensorGroup& group : tensors) elements += group.elements;
    return elements;
  }
};

/// What a token takes in each format. With `has_prediction` there is a cache for multi-token
/// prediction.
inline std::vector<CacheCost> cache_costs(const ModelConfig& config, bool has_prediction) {
  ModelConfig layers = config;
  layers.num_nextn_predict_layers = 0;
  const AttentionConfig& attention = config.attention;
  const Index head = attention.qk_head_dim() + attention.v_head_dim;
  std::vector<CacheCost> costs;
  for (std::size_t i = 0; i < kCacheFormatCount; ++i) {
    const auto format = static_cast<CacheFormat>(i);
    const auto bytes = [&](const ModelConfig& of) {
      return static_cast<Index>(DecoderState(of, format).bytes_per_token());
    };
    CacheCost cost = {.format = format, .bytes = bytes(layers)};
    if (has_prediction) cost.prediction_bytes = bytes(config) - cost.bytes;
    cost.multi_head_bytes =
        config.attentions() * attention.num_attention_heads * row_layout(format, head, 0).bytes;
    costs.push_back(cost);
  }
  return costs;
}

namespace detail {

/// Makes a ModelReport: each part of the directory is looked at even if others are refused.
class ModelInspector {
 public:
  explicit ModelInspector(const std::filesystem::path& directory) : directory_(directory) {
    report_.directory = directory.string();
  }

  ModelReport inspect() {
    attempt([&] { read_names(); });
    attempt([&] { report_.config = load_model_config(directory_); });
    attempt([&] { read_checkpoint(); });
    if (!checkpoint_) read_files();
    if (checkpoint_ && report_.config)
      attempt([&] {
        const DecoderWeights weights = load_decoder_weights(*checkpoint_, *report_.config);
        report_.has_prediction = weights.prediction.has_value();
      });
    if (report_.config)
      attempt([&] { report_.caches = cache_costs(*report_.config, report_.has_prediction); });
    return std::move(report_);
  }

 private:
  // Keeps the reason why something is refused.
  template <class Look>
  void attempt(const Look& look) {
    try {
      look();
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      // One mistake may stand in the way of several parts.
      if (std::ranges::find(report_.refusals, error.what()) == report_.refusals.end())
        report_.refusals.emplace_back(error.what());
    }
  }

  // What config.json calls itself, whatever else is in it.
  void read_names() {
    const JsonDocument document(parse_json_file(directory_ / "config.json"));
    const nlohmann::json& json = *document;
    if (!json.is_object()) return;
    if (const auto type = json.find("model_type"); type != json.end() && type->is_string())
      report_.model_type = *type;
    const auto names = json.find("architectures");
    if (names == json.end() || !names->is_array()) return;
    for (const nlohmann::json& name : *names)
      if (name.is_string()) report_.architectures.push_back(name);
  }

  void read_checkpoint() {
    checkpoint_.emplace(directory_, TensorData::untouched);
    if (checkpoint_->quantization()) report_.schemes = checkpoint_->quantization()->schemes;
    TensorMap tensors;
    for (const std::string& name : checkpoint_->names())
      tensors.emplace(name, &checkpoint_->tensor(name));
    report_.tensors = summarise(tensors);
  }

  // The tensors of all files that can be read, where they are no checkpoint together.
  void read_files() {
    std::error_code ignored;
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(directory_, ignored))
      if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
    std::ranges::sort(paths);
    std::deque<SafetensorsFile> files;
    TensorMap tensors;
    for (const auto& path : paths)
      attempt([&] {
        for (const auto& [name, tensor] : files.emplace_back(path, TensorData::untouched).tensors())
          tensors.emplace(name, &tensor);
      });
    report_.tensors = summarise(tensors);
  }

  std::filesystem::path directory_;
  std::optional<Checkpoint> checkpoint_;
  ModelReport report_;
};

}  // namespace detail

/// Looks at a model's directory. Reads its configuration and the headers of its files, not the
/// weights, so that it takes a moment for a model of any size, also where only headers were
/// downloaded and the files are as long as they should be. What would be refused when the model is
/// loaded is in the report. Throws std::runtime_error where there is no such directory.
inline ModelReport inspect_model(const std::filesystem::path& directory) {
  if (!std::filesystem::is_directory(directory))
    throw_runtime(directory.string(), ": not a directory with a model");
  return detail::ModelInspector(directory).inspect();
}

}  // namespace mla

#endif  // MLA_MODEL_MODEL_REPORT_HPP_
