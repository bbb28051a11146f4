#ifndef MLA_EXAMPLES_CONFORMANCE_ROPE_TABLES_HPP_
#define MLA_EXAMPLES_CONFORMANCE_ROPE_TABLES_HPP_

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "case_config.hpp"
#include "case_file.hpp"
#include "report.hpp"
#include "tolerance.hpp"

#include "mla/core/tensor.hpp"
#include "mla/ops/rope.hpp"

namespace mla::conformance {

/// Frequencies, each relative to itself: they span many orders of magnitude.
inline Check compare_inv_freq(const CaseFile& file, const std::string& name,
                              const RotaryEmbedding& rotary) {
  const auto& actual = rotary.inv_freq();
  const Index pairs = std::ssize(actual);
  const RowMajorMatrix expected = file.tensor(name, {pairs}).matrix(1, pairs);
  Check check{.name = name, .tolerance = kFloat32Rounding};
  for (Index i = 0; i < pairs; ++i)
    check.compare(1.0, actual[static_cast<std::size_t>(i)] / static_cast<double>(expected(0, i)));
  return check;
}

inline Check compare_number(const std::string& name, double expected, double actual) {
  Check check{.name = name, .tolerance = kFloat32Rounding};
  check.compare(expected, actual);
  return check;
}

namespace detail {

/// One of the `settings`: a rotary dimension, a theta and a scaling.
struct RopeSetting {
  std::string index;
  RopeScaling scaling;
  RotaryEmbedding rotary;
};

inline RopeSetting read_setting(const CaseFile& file, const nlohmann::json& settings, Index place) {
  const nlohmann::json& json = settings[static_cast<std::size_t>(place)];
  const std::string where = file.path() + ": settings[" + std::to_string(place) + "]";
  if (!json.is_object()) throw_runtime(where, " must be an object, got ", json_text(json));
  const auto size = [&](const char* key) {
    return json.contains(key) ? json_size(json[key], where + "." + key) : 0;
  };
  RopeSetting setting;
  const Index index = json.contains("index") ? size("index") : place;
  if (index >= std::ssize(settings))
    throw_runtime(where, ".index must be below the ", settings.size(), " settings, got ", index);
  setting.index = std::to_string(index);
  setting.scaling = read_rope_scaling(field(json, "rope_scaling", where), where + ".rope_scaling");
  setting.rotary = RotaryEmbedding(
      size("dim"), json_number(field(json, "rope_theta", where), where + ".rope_theta"),
      setting.scaling, size("max_position_embeddings"), size("seq_len"));
  return setting;
}

inline Check compare_scales(const CaseFile& file, const RopeSetting& setting, Index settings) {
  const RowMajorMatrix scales = file.tensor("scales", {settings, 2}).matrix(settings, 2);
  const auto row = scales.row(std::stol(setting.index));
  Check check{.name = "scales." + setting.index, .tolerance = kFloat32Rounding};
  check.compare(row(0), setting.rotary.cos_sin_scale());
  check.compare(row(1), rope_softmax_multiplier(setting.scaling));
  return check;
}

inline Check compare_cos_sin(const CaseFile& file, const RopeSetting& setting) {
  const Index count = file.tensor("positions").values.cols;
  const std::vector<Index> positions = file.integers("positions", {count});
  const Index pairs = std::ssize(setting.rotary.inv_freq());
  RowMajorMatrix cos(count, pairs), sin(count, pairs);
  setting.rotary.tables(positions, {cos.data(), count, pairs}, {sin.data(), count, pairs});
  Check check{.name = "cos.sin." + setting.index, .tolerance = kFloat32Rounding};
  for (const auto& [name, actual] : {std::pair("cos.", &cos), std::pair("sin.", &sin)}) {
    const auto expected = file.tensor(name + setting.index, {count, pairs}).matrix(count, pairs);
    for (Index i = 0; i < actual->size(); ++i) check.compare(expected.data()[i], actual->data()[i]);
  }
  return check;
}

}  // namespace detail

/// Kind rope_tables: of each check, the worst over all settings.
inline Report check_rope_tables(const CaseFile& file) {
  const nlohmann::json settings = file.json("settings");
  if (!settings.is_array() || settings.empty()) file.fail("settings must be a list");
  Report report{file.name(), "tables", {}, "float32 rounding"};
  const auto keep_worst = [&](std::size_t place, Check check) {
    if (report.checks.size() <= place)
      report.checks.push_back(std::move(check));
    else if (check.relative() > report.checks[place].relative())
      report.checks[place] = std::move(check);
  };
  for (Index i = 0; i < std::ssize(settings); ++i) {
    const auto setting = detail::read_setting(file, settings, i);
    keep_worst(0, compare_inv_freq(file, "inv_freq." + setting.index, setting.rotary));
    keep_worst(1, detail::compare_scales(file, setting, std::ssize(settings)));
    if (file.contains("cos." + setting.index))
      keep_worst(2, detail::compare_cos_sin(file, setting));
  }
  return report;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_ROPE_TABLES_HPP_
