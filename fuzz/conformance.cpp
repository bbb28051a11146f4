// Any bytes as a conformance case, run where it is one.

#include "conformance/case_file.hpp"
#include "conformance/run_case.hpp"
#include "fuzz.hpp"
#include "safetensors_mutator.hpp"

namespace {

// A case may rightly ask for tensors that take long to generate.
bool generates_much(const mla::SafetensorsFile& file) {
  const auto generator = file.metadata().find("generator");
  if (generator == file.metadata().end()) return false;
  const nlohmann::json entries = mla::parse_json(generator->second, "generator");
  mla::Index elements = 0;
  for (const nlohmann::json& entry : entries) {
    mla::Index of_entry = 1;
    for (const mla::Index dim : mla::conformance::read_generated_tensor(entry, "generator").shape)
      of_entry *= dim;
    elements += of_entry;
  }
  return elements > 10'000;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  return mla::fuzz::mutate_safetensors(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mla::fuzz::MemoryFile file;
  mla::conformance::Options options;
  if (size % 2 == 0) {
    options.weights = mla::WeightFormat::bfloat16;
    options.cache = mla::CacheFormat::bfloat16;
  }
  if (size % 3 == 0) options.cache = mla::CacheFormat::int8;
  mla::fuzz::only_documented_errors([&] {
    file.write(mla::fuzz::text_of(data, size));
    if (generates_much(mla::SafetensorsFile(file.path()))) return;
    for (const auto& report :
         mla::conformance::run_case(mla::conformance::CaseFile(file.path()), options))
      mla::fuzz::check(!report.line().empty(), "a report says something");
  });
  return 0;
}
