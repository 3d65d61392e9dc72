// A section of a tokenizer.json, read strictly: what is not understood would change ids.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "placement/error.h"

namespace dtensor::nn {

class Section {
 public:
  using Json = nlohmann::ordered_json;
  // Errors: what is no object.
  Section(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    check(json.is_object(), "[tokenizer] {} is not an object", path_);
  }
  const std::string& path() const { return path_; }
  std::string at(std::string_view key) const { return path_ + "." + std::string(key); }

  // The field, or null where it is absent or null.
  const Json* find(const char* key) {
    read_.insert(key);
    auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& required(const char* key) {
    const Json* value = find(key);
    check(value != nullptr, "[tokenizer] {} has no \"{}\"", path_, key);
    return *value;
  }
  template <class T>
  T get(const char* key) {
    return as<T>(required(key), key);
  }
  template <class T>
  T get(const char* key, T otherwise) {
    const Json* value = find(key);
    return value ? as<T>(*value, key) : otherwise;
  }
  // Errors: a field that nothing asked for and that is not null.
  void end() const {
    for (const auto& [key, value] : json_.items())
      check(value.is_null() || read_.count(key), "[tokenizer] {}.{} is not supported (it is {})", path_, key,
            value.dump());
  }

 private:
  template <class T>
  T as(const Json& value, const char* key) const {
    bool ok = std::is_same_v<T, bool>          ? value.is_boolean()
              : std::is_same_v<T, std::string> ? value.is_string()
              : std::is_integral_v<T>          ? value.is_number_integer()
                                               : value.is_number();
    const char* wanted = std::is_same_v<T, bool>          ? "true or false"
                         : std::is_same_v<T, std::string> ? "a text"
                         : std::is_integral_v<T>          ? "an integer"
                                                          : "a number";
    if (!ok) fail("[tokenizer] {}.{} is {}, not {}", path_, key, value.dump(), wanted);
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      auto wide = value.get<int64_t>();
      check(!value.is_number_unsigned() || value.get<uint64_t>() < uint64_t(1) << 62,
            "[tokenizer] {}.{} is too large: {}", path_, key, value.get<double>());
      check(wide >= 0 && wide <= int64_t(std::numeric_limits<int32_t>::max()),
            "[tokenizer] {}.{} is {}, not from 0 to 2^31 - 1", path_, key, wide);
      return T(wide);
    } else {
      return value.get<T>();
    }
  }

  const Json& json_;
  std::string path_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace dtensor::nn
