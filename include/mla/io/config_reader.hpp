#ifndef MLA_IO_CONFIG_READER_HPP_
#define MLA_IO_CONFIG_READER_HPP_

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/json.hpp"

namespace mla {

/// The keys of one JSON object, read strictly. A key that is null counts as absent. Errors are
/// std::runtime_error with the file, the key and its value.
class ConfigReader {
 public:
  /// `where` begins every message: "config.json: " or "config.json: rope_scaling.".
  ConfigReader(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {
    if (!object.is_object())
      throw_runtime(where_.substr(0, where_.find_last_not_of(". :") + 1),
                    " must be an object, got ", json_text(object));
  }

  const nlohmann::json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool contains(const char* key) const { return object_.contains(key); }

  const nlohmann::json& json() const noexcept { return object_; }
  /// What every message begins with.
  const std::string& where() const noexcept { return where_; }

  Index size(const char* key) const { return json_size(at(key), where_ + key); }
  double number(const char* key) const { return json_number(at(key), where_ + key); }
  double number(const char* key, double fallback) const {
    return find(key) ? number(key) : fallback;
  }
  bool boolean(const char* key, bool fallback) const {
    return find(key) ? json_bool(*find(key), where_ + key) : fallback;
  }
  const std::string& string(const char* key) const { return json_string(at(key), where_ + key); }
  ConfigReader object(const char* key) const { return {at(key), where_ + key + "."}; }
  const nlohmann::json& array(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_array()) fail(key, " must be an array, got ", json_text(value));
    return value;
  }

  /// Throws unless `key` is absent or has the only value that is supported.
  void expect(const char* key, double value) const {
    if (number(key, value) != value)
      throw_runtime(where_, key, " must be ", value, ", got ", json_text(at(key)));
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_runtime(where_, parts...);
  }

  using Keys = std::span<const std::string_view>;
  /// Throws for the first key that is in none of the lists, unless its value switches it off.
  void refuse_keys_besides(std::initializer_list<Keys> lists, bool permit_false,
                           std::string_view reason) const {
    for (const auto& [key, value] : object_.items()) {
      if (value.is_null() || (permit_false && value == false)) continue;
      const bool known = std::ranges::any_of(
          lists, [&key = key](Keys list) { return std::ranges::count(list, key) > 0; });
      if (!known) fail(key, " = ", json_text(value), " is not supported", reason);
    }
  }

 private:
  const nlohmann::json& at(const char* key) const {
    const nlohmann::json* value = find(key);
    if (!value) fail(key, contains(key) ? " must not be null" : " is missing");
    return *value;
  }

  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace mla

#endif  // MLA_IO_CONFIG_READER_HPP_
