// Reading a model's config.json with errors that name the field, its value and what it may be.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nn/json.h"
#include "placement/error.h"

namespace dtensor::nn {

// An object of a config.json. Fields that are absent or null leave a value as it is.
class ConfigReader {
 public:
  // `who`: in the brackets of errors. Errors: no object.
  ConfigReader(const nlohmann::ordered_json& json, std::string who);

  bool present(const char* key) const { return json_.contains(key); }  // null or not
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  const nlohmann::ordered_json& operator[](const char* key) const { return json_[key]; }
  const std::string& who() const { return who_; }

  // From 1 on; whether it was there.
  bool integer(const char* key, int64_t& value) const;
  void number(const char* key, double& value) const;
  void positive(const char* key, double& value) const;
  void probability(const char* key, double& value) const;
  void standard_deviation(const char* key, double& value) const;
  void flag(const char* key, bool& value) const;
  void text(const char* key, std::string& value) const;
  // A token's id; -1 is none.
  void token(const char* key, int64_t& value, int64_t vocab_size) const;

  // Any object would be a model of default sizes: these fields tell `what` ("a Llama") from others.
  void require(const std::vector<const char*>& keys, const char* what) const;
  // A field that changes the result, of which only these values are supported; null where it is among them.
  void only(const char* key, const std::vector<nlohmann::ordered_json>& values) const;
  // model_type, or the type of the first of architectures; `otherwise` where there is neither. Errors: one that is not
  // known, or two that differ.
  std::string model_type(const std::vector<std::pair<std::string, std::string>>& architectures,
                         const char* otherwise) const;

 private:
  const nlohmann::ordered_json& json_;
  std::string who_;
};

// What `read` makes of a file, or of a folder's config.json. Errors are `read`'s, with the file's name.
template <class Read>
auto load_config(const std::string& path, const char* who, Read read) {
  std::string file = config_file(path);
  nlohmann::ordered_json json = load_json(file, who);
  try {
    return read(json);
  } catch (const Error& e) {
    fail("{} (in {})", e.what(), file);
  }
}

}  // namespace dtensor::nn
