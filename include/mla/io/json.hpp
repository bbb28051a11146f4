#ifndef MLA_IO_JSON_HPP_
#define MLA_IO_JSON_HPP_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/mapped_file.hpp"

// JSON as this library reads it: nothing is guessed. A key that occurs twice, a number where a
// string belongs, 1.5 or 2^64 where a size belongs: each is a std::runtime_error that says where.

namespace mla {

/// What the parser or writer says, without the tag that it begins with:
/// "[json.exception.parse_error.101] ".
inline std::string json_error_text(const nlohmann::json::exception& error) {
  const std::string_view text = error.what();
  const std::size_t tag_end = text.starts_with("[json.exception.") ? text.find("] ") : text.npos;
  return std::string(tag_end == text.npos ? text : text.substr(tag_end + 2));
}

/// Parses `text`. Throws std::runtime_error beginning with `origin` (a path) when it is not JSON,
/// has a duplicate key within one object, or is nested more than 64 deep.
inline nlohmann::json parse_json(std::string_view text, const std::string& origin) {
  using Event = nlohmann::json::parse_event_t;
  constexpr int kMaxDepth = 64;
  // The parser takes a NUL byte for the end and would not see what follows it.
  if (text.find('\0') != text.npos) throw_runtime(origin, ": JSON contains a NUL byte");
  struct Object {
    std::set<std::string> keys;
    std::string last_key;
  };
  std::vector<Object> open_objects;  // those around the current value, the innermost last
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > kMaxDepth) throw_runtime(origin, ": JSON is nested deeper than ", kMaxDepth);
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key) {
      Object& object = open_objects.back();
      object.last_key = value.get_ref<const std::string&>();
      if (!object.keys.insert(object.last_key).second) {
        std::string path;
        for (const Object& outer : open_objects) path += (path.empty() ? "" : ".") + outer.last_key;
        throw_runtime(origin, ": JSON has the key ", path, " twice");
      }
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw_runtime(origin, ": ", json_error_text(error));
  }
}

/// Parses the file at `path`; errors as for parse_json and MappedFile.
inline nlohmann::json parse_json_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                    file.path());
}

/// Holds JSON until it is no longer needed. The destructor of nlohmann::json makes a list of what
/// is left to do, in memory that it allocates, and ends the program where there is none. This one
/// does without.
class JsonDocument {
 public:
  explicit JsonDocument(nlohmann::json&& json) noexcept : json_(std::move(json)) {}
  JsonDocument(const JsonDocument&) = delete;
  JsonDocument& operator=(const JsonDocument&) = delete;
  ~JsonDocument() { empty(json_); }  // NOLINT(bugprone-exception-escape): see below

  const nlohmann::json& operator*() const noexcept { return json_; }

 private:
  // From the inside out: what is destroyed has nothing in it. Iterators of arrays and objects do
  // not throw. NOLINTNEXTLINE(bugprone-exception-escape)
  static void empty(nlohmann::json& json) noexcept {
    if (!json.is_structured()) return;
    for (nlohmann::json& child : json) empty(child);
    json.clear();
  }

  nlohmann::json json_;
};

/// `value` for an error message: its JSON text, shortened.
inline std::string json_text(const nlohmann::json& value) {
  constexpr std::size_t kMaxLength = 80;
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxLength) {
    text.resize(kMaxLength);
    text += "...";
  }
  return text;
}

/// A JSON integer between 0 and 2^63 - 1. `where` begins the message of the std::runtime_error.
inline Index json_size(const nlohmann::json& value, const std::string& where) {
  // Non-negative integers that were set in code, not parsed, may be stored as signed.
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= kMax
                        : value.is_number_integer() && value.get<std::int64_t>() >= 0;
  if (!fits)
    throw_runtime(where, " must be an integer between 0 and 2^63 - 1, got ", json_text(value));
  return value.get<Index>();
}

/// A finite JSON number, written as an integer or as a fraction.
inline double json_number(const nlohmann::json& value, const std::string& where) {
  if (!value.is_number() || !std::isfinite(value.get<double>()))
    throw_runtime(where, " must be a number, got ", json_text(value));
  return value.get<double>();
}

inline bool json_bool(const nlohmann::json& value, const std::string& where) {
  if (!value.is_boolean()) throw_runtime(where, " must be true or false, got ", json_text(value));
  return value.get<bool>();
}

inline const std::string& json_string(const nlohmann::json& value, const std::string& where) {
  if (!value.is_string()) throw_runtime(where, " must be a string, got ", json_text(value));
  return value.get_ref<const std::string&>();
}

}  // namespace mla

#endif  // MLA_IO_JSON_HPP_
