#ifndef MLA_EXAMPLES_CONFORMANCE_RUN_PATH_HPP_
#define MLA_EXAMPLES_CONFORMANCE_RUN_PATH_HPP_

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "case_file.hpp"
#include "eviction_case.hpp"
#include "model_case.hpp"
#include "report.hpp"
#include "run_case.hpp"

#include "mla/core/error.hpp"

namespace mla::conformance {

/// A case file itself, or the case files in a directory, by name. Throws std::runtime_error for a
/// directory without any.
inline std::vector<std::filesystem::path> case_files(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  if (files.empty()) throw_runtime(path, ": no *.safetensors in this directory");
  std::ranges::sort(files);
  return files;
}

/// Runs the cases of a file and calls take(Report) for each. Throws std::exception for a file that
/// is not a case, or not one that this library can run.
template <class Take>
void run_file(const std::filesystem::path& path, const Options& options, const Take& take) {
  if (is_eviction_case(path)) return run_eviction(path, options, take);
  const CaseFile file(path);
  for (const Report& report : run_case(file, options)) take(report);
}

/// The same for whatever `path` names: a case file, a directory of them, or one of a model.
template <class Take>
void run_path(const std::string& path, const Options& options, const Take& take) {
  if (is_model(path)) {
    run_model(path, options, take);
    return;
  }
  for (const auto& file : case_files(path)) run_file(file, options, take);
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_RUN_PATH_HPP_
