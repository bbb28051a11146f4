// A config.json and a safetensors file with quantised weights: two texts in one input.

#include <vector>

#include "fuzz.hpp"
#include "mla/io/quantise.hpp"
#include "mla/io/save_checkpoint.hpp"

namespace {

using mla::Index;

// Reads [rows, cols] of a matrix as far as that takes no time.
void read_matrix(const mla::Checkpoint& checkpoint, const std::string& name, Index rows,
                 Index cols) {
  constexpr Index kMost = 512;
  if (rows < 1 || rows > kMost || cols < 1 || cols > kMost) return;
  mla::fuzz::only_documented_errors([&] {
    const mla::WeightView weight = checkpoint.matrix(name, rows, cols);
    mla::require_shape(name, weight, rows, cols);
    mla::fuzz::check(weight.bytes() > 0, "a matrix has bytes");
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    mla::info_of(weight.format).widen(weight, {values.data(), rows, cols});
  });
}

// Of all matrices, with the shape that their tensors have or say they have.
void read_all(const mla::Checkpoint& checkpoint) {
  for (const std::string& name : checkpoint.names()) {
    const mla::SafetensorsTensor& tensor = checkpoint.tensor(name);
    if (tensor.shape.size() != 2) continue;
    if (!name.ends_with("_packed")) {
      read_matrix(checkpoint, name, tensor.shape[0], tensor.shape[1]);
      continue;
    }
    const std::string matrix = name.substr(0, name.size() - std::string_view("_packed").size());
    read_matrix(checkpoint, matrix, tensor.shape[0], 2 * std::min<Index>(tensor.shape[1], 1000));
    if (!checkpoint.contains(matrix + "_shape")) continue;
    const mla::SafetensorsTensor& shape = checkpoint.tensor(matrix + "_shape");
    if (shape.dtype == mla::SafetensorsDType::int32 && shape.shape == std::vector<Index>{2})
      read_matrix(checkpoint, matrix, shape.values<std::int32_t>()[0],
                  shape.values<std::int32_t>()[1]);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryDirectory directory({"config.json", "model.safetensors"});
  const auto parts = mla::fuzz::split(mla::fuzz::text_of(data, size), 2);
  for (std::size_t i = 0; i < parts.size(); ++i) directory.write(i, parts[i]);
  mla::fuzz::only_documented_errors([&] {
    mla::Checkpoint checkpoint(directory.path());
    read_all(checkpoint);
    const mla::Checkpoint made =
        quantise(std::move(checkpoint), mla::default_policy(mla::WeightFormat::int4));
    read_all(made);
    mla::detail::CompressedTensorsConfig(made).json();
  });
  return 0;
}
