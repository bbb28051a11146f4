#ifndef MLA_IO_CHECKPOINT_HPP_
#define MLA_IO_CHECKPOINT_HPP_

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/json.hpp"
#include "mla/io/matrix_reader.hpp"
#include "mla/io/quantization_config.hpp"
#include "mla/io/safetensors.hpp"

namespace mla {

/// The tensors of a published model, in one safetensors file or in shards with an index.
///
/// Weights are views into the mapped files, valid as long as the Checkpoint lives, also when it is
/// moved. All but replace_matrix() is safe to use from several threads.
class Checkpoint {
 public:
  /// A tensor with memory of its own.
  struct OwnTensor {
    SafetensorsTensor tensor;  ///< its bytes are those of `memory`
    AlignedBuffer<std::byte> memory;
  };

  /// Opens a .safetensors file, or a directory with model.safetensors, or one with
  /// model.safetensors.index.json and the shards it names; and mtp-1-of-1.safetensors, if that is
  /// beside them. The directory's config.json, if there is one, says how matrices are quantised.
  /// Throws std::runtime_error naming the file, the shard and the tensor that is not as it must be,
  /// also where config.json names a format that no matrix has, and where a matrix is quantised that
  /// config.json knows nothing of.
  /// With TensorData::untouched weights are good for their shapes and formats only, and what
  /// depends on numbers (that scales are positive) is not checked.
  explicit Checkpoint(const std::filesystem::path& path, TensorData use = TensorData::read)
      : path_(path.string()), use_(use) {
    if (!std::filesystem::is_directory(path)) {
      add_file(path);
      return;
    }
    const auto single = path / "model.safetensors";
    const auto index = path / "model.safetensors.index.json";
    const auto config = path / "config.json";
    if (std::filesystem::exists(single))
      add_file(single);
    else if (std::filesystem::exists(index))
      add_shards(index);
    else
      throw_runtime(path_, ": has neither model.safetensors nor model.safetensors.index.json");
    // JoyAI's module for multi-token prediction is in a file that the index does not name.
    const auto module = path / "mtp-1-of-1.safetensors";
    if (std::filesystem::exists(module)) add_file(module);
    if (!std::filesystem::exists(config)) return;
    quantization_ =
        read_quantization_config(*JsonDocument(parse_json_file(config)), config.string());
    check_formats(config.string());
  }

  const std::string& path() const noexcept { return path_; }
  TensorData use() const noexcept { return use_; }

  /// How matrices are quantised; nothing where there is no config.json.
  const std::optional<QuantizationConfig>& quantization() const noexcept { return quantization_; }

  bool contains(std::string_view name) const { return tensors_.contains(name); }

  /// All names that begin with `prefix`, sorted.
  std::vector<std::string> names(std::string_view prefix = {}) const {
    std::vector<std::string> result;
    for (auto it = tensors_.lower_bound(prefix);
         it != tensors_.end() && it->first.starts_with(prefix); ++it)
      result.push_back(it->first);
    return result;
  }

  /// The tensor as it is stored. Throws std::runtime_error when there is none of this name.
  const SafetensorsTensor& tensor(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw_runtime(path_, ": tensor ", name, " is missing");
    return *found->second;
  }

  /// Whether matrix `name` is there, in whatever format: "X.weight" may be X.weight_packed.
  bool contains_matrix(std::string_view name) const { return reader(name).exists(); }

  /// The names of all tensors that matrix `name` is stored in.
  std::vector<std::string> parts_of_matrix(std::string_view name) const {
    return reader(name).parts();
  }

  /// How a quantised matrix [rows, cols] of `format` is. Throws as matrix().
  WeightScheme scheme_of_matrix(std::string_view name, WeightFormat format, Index rows,
                                Index cols) const {
    return reader(name).scheme(format, rows, cols);
  }

  /// Weight [rows, cols], in the format that its tensors have: of F32, BF16 or F16, or quantised,
  /// with its scales (detail::MatrixReader). Throws std::runtime_error naming the tensor that is
  /// missing, has another shape or element type than it must have, or contradicts config.json, and
  /// the scale that is not a positive number.
  WeightView matrix(std::string_view name, Index rows, Index cols) const {
    return reader(name).read(rows, cols);
  }

  /// Stores matrix `name` in other tensors, quantised by `scheme`. What it was stored in is no
  /// longer there, and its memory is let go of; views of it are not valid any more.
  void replace_matrix(std::string_view name, std::vector<OwnTensor> tensors,
                      const WeightScheme& scheme) {
    for (const std::string& part : parts_of_matrix(name)) {
      const auto found = tensors_.find(part);
      release(*found->second);
      tensors_.erase(found);
    }
    for (OwnTensor& tensor : tensors) {
      const OwnTensor& kept = own_.emplace_back(std::move(tensor));
      tensors_.insert_or_assign(kept.tensor.name, &kept.tensor);
    }
    if (!quantization_) quantization_.emplace();
    if (!std::ranges::count(quantization_->schemes, scheme))
      quantization_->schemes.push_back(scheme);
  }

  /// Lets go of the memory that holds a tensor of a mapped file; it can be read again.
  void release(const SafetensorsTensor& tensor) const noexcept {
    for (const SafetensorsFile& file : files_) file.release(tensor);
  }

  /// Weight [1, size], stored as [size]: a norm or a bias. Errors as for matrix.
  WeightView vector(std::string_view name, Index size) const {
    return view(tensor_of_shape(name, {size}), 1, size);
  }

 private:
  detail::MatrixReader reader(std::string_view name) const {
    return {path_, tensors_, quantization_, name, use_};
  }

  void add_file(const std::filesystem::path& path) {
    for (const auto& [name, tensor] : files_.emplace_back(path, use_).tensors())
      tensors_.emplace(name, &tensor);
  }

  // {"weight_map": {tensor: file}}; the files lie beside the index.
  void add_shards(const std::filesystem::path& index_path) {
    const std::string origin = index_path.string();
    const JsonDocument document(parse_json_file(index_path));
    const nlohmann::json& index = *document;
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      throw_runtime(origin, ": must have an object weight_map");
    std::map<std::string, std::size_t> opened;  // file name -> place in files_
    for (const auto& [name, value] : index["weight_map"].items()) {
      const std::string& shard = json_string(value, origin + ": file of tensor " + name);
      const auto [entry, is_new] = opened.emplace(shard, files_.size());
      if (is_new) {
        if (!is_plain_file_name(shard))
          throw_runtime(origin, ": file of tensor ", name, " must be beside the index, got ",
                        shard);
        files_.emplace_back(index_path.parent_path() / shard, use_);
      }
      const SafetensorsFile& file = files_[entry->second];
      if (!file.contains(name)) throw_runtime(origin, ": tensor ", name, " is missing in ", shard);
      tensors_.emplace(name, &file.tensor(name));
    }
  }

  static bool is_plain_file_name(const std::string& name) {
    return !name.empty() && name != "." && name != ".." &&
           name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
  }

  const SafetensorsTensor& tensor_of_shape(std::string_view name,
                                           const std::vector<Index>& shape) const {
    const SafetensorsTensor& found = tensor(name);
    if (found.shape != shape)
      throw_runtime(path_, ": tensor ", name, " has shape ", shape_text(found.shape), ", expected ",
                    shape_text(shape));
    return found;
  }

  WeightView view(const SafetensorsTensor& tensor, Index rows, Index cols) const {
    const std::optional<WeightFormat> format = weight_format_of(tensor.dtype);
    if (!format)
      throw_runtime(path_, ": tensor ", tensor.name, " has dtype ", name_of(tensor.dtype),
                    ", which cannot be used as a weight here");
    return {tensor.bytes.data(), *format, rows, cols};
  }

  // Every format that config.json names is that of some matrix, and the other way round.
  void check_formats(const std::string& config) const {
    std::map<WeightFormat, const std::string*> seen;
    for (const auto& [name, tensor] : tensors_)
      if (const auto format = detail::quantised_format_of(*tensor)) seen.emplace(*format, &name);
    for (const auto& [format, name] : seen)
      if (!quantization_->has(format))
        throw_runtime(path_, ": tensor ", *name, " is ", name_of(format), ", but ", config,
                      " has no such quantization_config");
    for (const WeightScheme& scheme : quantization_->schemes)
      if (!seen.contains(scheme.format))
        throw_runtime(config, ": quantization_config is of ", name_of(scheme.format),
                      " weights, but no tensor of the model is ", name_of(scheme.format));
  }

  std::string path_;
  TensorData use_;
  std::vector<SafetensorsFile> files_;
  std::list<OwnTensor> own_;
  TensorMap tensors_;
  std::optional<QuantizationConfig> quantization_;  // none without a config.json
};

}  // namespace mla

#endif  // MLA_IO_CHECKPOINT_HPP_
