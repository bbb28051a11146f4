#ifndef MLA_IO_CHECKPOINT_HPP_
#define MLA_IO_CHECKPOINT_HPP_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/fp8.hpp"
#include "mla/io/json.hpp"
#include "mla/io/quantization_config.hpp"
#include "mla/io/safetensors.hpp"

namespace mla {

/// The tensors of a published model, in one safetensors file or in shards with an index.
///
/// Weights are views into the mapped files, valid as long as the Checkpoint lives, also when it is
/// moved. F8_E4M3 matrices are decoded when they are first asked for, one at a time, and kept; all
/// member functions are safe to call from several threads.
class Checkpoint {
 public:
  /// Opens a .safetensors file, or a directory with model.safetensors, or one with
  /// model.safetensors.index.json and the shards it names. The block size of F8_E4M3 weights comes
  /// from the directory's config.json, if there is one, and is 128 x 128 otherwise; `fp8_as` is
  /// what they are decoded to: bfloat16, or float32, which keeps every bit in twice the memory.
  /// Throws std::runtime_error naming the file, the shard and the tensor that is not as it must be.
  explicit Checkpoint(const std::filesystem::path& path,
                      WeightFormat fp8_as = WeightFormat::bfloat16)
      : path_(path.string()), fp8_as_(fp8_as) {
    require(fp8_as == WeightFormat::bfloat16 || fp8_as == WeightFormat::float32,
            "F8_E4M3 weights are decoded to bf16 or f32, whose range holds them all, got ",
            name_of(fp8_as));
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
    if (std::filesystem::exists(config))
      block_size_ = read_weight_block_size(*JsonDocument(parse_json_file(config)), config.string());
  }

  const std::string& path() const noexcept { return path_; }

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

  /// Weight [rows, cols] of F32, BF16 or F16 as it is stored, of F8_E4M3 (with `name`_scale_inv)
  /// decoded. Throws std::runtime_error naming the tensor when it or its scale is missing or has
  /// another shape or element type.
  WeightView matrix(std::string_view name, Index rows, Index cols) const {
    const SafetensorsTensor& weight = tensor_of_shape(name, {rows, cols});
    if (weight.dtype == SafetensorsDType::float8_e4m3)
      return {decoded(weight), fp8_as_, rows, cols};
    return view(weight, rows, cols);
  }

  /// Weight [1, size], stored as [size]: a norm or a bias. Errors as for matrix.
  WeightView vector(std::string_view name, Index size) const {
    return view(tensor_of_shape(name, {size}), 1, size);
  }

 private:
  struct Decoded {
    std::mutex mutex;
    std::map<std::string, AlignedBuffer<std::byte>, std::less<>> weights;
  };

  void add_file(const std::filesystem::path& path) {
    for (const auto& [name, tensor] : files_.emplace_back(path).tensors())
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
        files_.emplace_back(index_path.parent_path() / shard);
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

  const void* decoded(const SafetensorsTensor& weight) const {
    const std::lock_guard lock(decoded_->mutex);
    const auto found = decoded_->weights.find(weight.name);
    if (found != decoded_->weights.end()) return found->second.data();

    const Index rows = weight.shape[0], cols = weight.shape[1];
    const auto [scale_rows, scale_cols] = blocks_of(rows, cols, block_size_);
    const std::vector<float> scale =
        scales(tensor_of_shape(weight.name + "_scale_inv", {scale_rows, scale_cols}));
    AlignedBuffer<std::byte> values(
        static_cast<std::size_t>(rows * cols * info_of(fp8_as_).bits / 8));
    const auto decode_to = [&](auto* out) {
      dequantize_fp8({reinterpret_cast<const std::uint8_t*>(weight.bytes.data()), rows, cols},
                     {scale.data(), scale_rows, scale_cols}, block_size_,
                     MatrixView(out, rows, cols));
    };
    if (fp8_as_ == WeightFormat::float32)
      decode_to(reinterpret_cast<float*>(values.data()));
    else
      decode_to(reinterpret_cast<bfloat16*>(values.data()));
    return decoded_->weights.emplace(weight.name, std::move(values)).first->second.data();
  }

  std::vector<float> scales(const SafetensorsTensor& scale) const {
    const auto convert = [](auto values, auto to_float) {
      std::vector<float> result;
      for (const auto value : values) result.push_back(to_float(value));
      return result;
    };
    if (scale.dtype == SafetensorsDType::float32)
      return convert(scale.values<float>(), [](float value) { return value; });
    if (scale.dtype == SafetensorsDType::bfloat16)
      return convert(scale.values<bfloat16>(), [](bfloat16 value) { return float(value); });
    if (scale.dtype == SafetensorsDType::float8_e8m0)
      return convert(scale.bytes, [](std::byte value) {
        return decode_e8m0(std::to_integer<std::uint8_t>(value));
      });
    throw_runtime(path_, ": tensor ", scale.name, " has dtype ", name_of(scale.dtype),
                  ", expected F32, BF16 or F8_E8M0");
  }

  std::string path_;
  WeightFormat fp8_as_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsTensor*, std::less<>> tensors_;
  BlockSize block_size_ = kDefaultWeightBlockSize;
  std::unique_ptr<Decoded> decoded_ = std::make_unique<Decoded>();
};

}  // namespace mla

#endif  // MLA_IO_CHECKPOINT_HPP_
