#ifndef MLA_TESTS_CONFORMANCE_EDITABLE_CASE_HPP_
#define MLA_TESTS_CONFORMANCE_EDITABLE_CASE_HPP_

#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/io/safetensors.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {

/// A case file in memory, to be made or changed and written.
struct EditableCase {
  struct Tensor {
    std::vector<Index> shape;
    std::vector<float> values;
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;

  static EditableCase read(const std::filesystem::path& path) {
    EditableCase result;
    const SafetensorsFile file(path);
    result.metadata.insert(file.metadata().begin(), file.metadata().end());
    for (const auto& [name, tensor] : file.tensors()) {
      const auto values = tensor.values<float>();
      result.tensors[name] = {tensor.shape, {values.begin(), values.end()}};
    }
    return result;
  }

  void add(const std::string& name, const std::vector<Index>& shape, const RowMajorMatrix& values) {
    tensors[name] = {shape, {values.data(), values.data() + values.size()}};
  }

  std::filesystem::path write(const std::filesystem::path& path) const {
    nlohmann::json header = {{"__metadata__", metadata}};
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const std::size_t begin = data.size();
      data.append(reinterpret_cast<const char*>(tensor.values.data()),
                  tensor.values.size() * sizeof(float));
      header[name] = {
          {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    }
    return write_file(path, safetensors_bytes(header.dump(), data));
  }
};

}  // namespace mla::test

#endif  // MLA_TESTS_CONFORMANCE_EDITABLE_CASE_HPP_
