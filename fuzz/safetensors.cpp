// Any bytes as a safetensors file.

#include "mla/io/safetensors.hpp"

#include <numeric>

#include "fuzz.hpp"
#include "safetensors_mutator.hpp"

namespace {

// Tensors are as long as their shapes say, together as long as the data, and can be read.
void check_tensors(const mla::SafetensorsFile& file, std::string_view bytes) {
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  std::size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    const mla::Index elements =
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), mla::Index{1},
                        [](mla::Index a, mla::Index b) { return a * b; });
    mla::fuzz::check(elements * bytes_of(tensor.dtype) == std::ssize(tensor.bytes),
                     "a tensor has the bytes of its shape");
    for (const std::byte byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);
    total += tensor.bytes.size();
    mla::fuzz::check(&file.tensor(name) == &tensor, "a tensor is found by its name");
  }
  mla::fuzz::check(total + header + sizeof(header) == bytes.size(), "tensors cover the data");
  mla::fuzz::check(sum <= 255 * total, "all bytes can be read");
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  return mla::fuzz::mutate_safetensors(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryFile file;
  const std::string_view bytes = mla::fuzz::text_of(data, size);
  mla::fuzz::only_documented_errors(
      [&] { check_tensors(mla::SafetensorsFile(file.write(bytes)), bytes); });
  return 0;
}
