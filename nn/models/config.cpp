#include "nn/models/config.h"

#include <fmt/format.h>

#include <algorithm>

#include "placement/nearest.h"

namespace dtensor::nn {

ConfigReader::ConfigReader(const nlohmann::ordered_json& json, std::string who) : json_(json), who_(std::move(who)) {
  check(json.is_object(), "[{}] the file is not a JSON object", who_);
}

bool ConfigReader::integer(const char* key, int64_t& value) const {
  if (!has(key)) return false;
  const auto& v = json_[key];
  check(v.is_number_integer() && v.get<int64_t>() > 0 && v.get<int64_t>() <= INT32_MAX,
        "[{}] {} is {}; it needs an integer from 1 to {}", who_, key, v.dump(), INT32_MAX);
  value = v.get<int64_t>();
  return true;
}

void ConfigReader::number(const char* key, double& value) const {
  if (!has(key)) return;
  check(json_[key].is_number(), "[{}] {} is {}; it needs a number", who_, key, json_[key].dump());
  value = json_[key].get<double>();
}
void ConfigReader::positive(const char* key, double& value) const {
  number(key, value);
  check(value > 0, "[{}] {} is {}; it needs a number above 0", who_, key, value);
}
void ConfigReader::probability(const char* key, double& value) const {
  number(key, value);
  check(value >= 0 && value < 1, "[{}] {} is {}; a probability is from 0 to below 1", who_, key, value);
}
void ConfigReader::standard_deviation(const char* key, double& value) const {
  number(key, value);
  check(value >= 0, "[{}] {} is {}; a standard deviation is not negative", who_, key, value);
}

void ConfigReader::flag(const char* key, bool& value) const {
  if (!has(key)) return;
  check(json_[key].is_boolean(), "[{}] {} is {}; it needs true or false", who_, key, json_[key].dump());
  value = json_[key].get<bool>();
}

void ConfigReader::text(const char* key, std::string& value) const {
  if (!has(key)) return;
  check(json_[key].is_string(), "[{}] {} is {}; it needs a string", who_, key, json_[key].dump());
  value = json_[key].get<std::string>();
}

void ConfigReader::token(const char* key, int64_t& value, int64_t vocab_size) const {
  if (!has(key)) return;
  const auto& v = json_[key];
  check(v.is_number_integer() && v.get<int64_t>() >= -1 && v.get<int64_t>() < vocab_size,
        "[{}] {} is {}; it needs a token from 0 to {}, or null", who_, key, v.dump(), vocab_size - 1);
  value = v.get<int64_t>();
}

void ConfigReader::require(const std::vector<const char*>& keys, const char* what) const {
  std::vector<std::string> present, missing;
  for (const auto& [key, value] : json_.items()) present.push_back(key);
  for (const char* key : keys)
    if (!json_.contains(key)) missing.push_back(fmt::format("{}{}", key, nearest_hint(key, present)));
  check(missing.empty(), "[{}] this is no config.json of {}: it lacks {}", who_, what, fmt::join(missing, ", and "));
}

void ConfigReader::only(const char* key, const std::vector<nlohmann::ordered_json>& values) const {
  if (!json_.contains(key) || std::find(values.begin(), values.end(), json_[key]) != values.end()) return;
  std::vector<std::string> texts;
  for (const auto& v : values) texts.push_back(v.dump());
  fail("[{}] {} is {}; only {} is supported", who_, key, json_[key].dump(), fmt::join(texts, " or "));
}

std::string ConfigReader::model_type(const std::vector<std::pair<std::string, std::string>>& known,
                                     const char* otherwise) const {
  std::vector<std::string> types, names;
  for (const auto& [name, type] : known) names.push_back(name), types.push_back(type);
  std::string given, of_architecture;
  text("model_type", given);
  check(given.empty() || std::find(types.begin(), types.end(), given) != types.end(),
        "[{}] model_type is \"{}\"; supported are {}", who_, given, fmt::join(types, ", "));
  if (has("architectures")) {
    const auto& list = json_["architectures"];
    for (const auto& [name, type] : known)
      if (list.is_array() && std::find(list.begin(), list.end(), name) != list.end()) of_architecture = type;
    check(!of_architecture.empty(), "[{}] architectures is {}; supported are {}", who_, list.dump(),
          fmt::join(names, ", "));
    check(given.empty() || given == of_architecture, "[{}] model_type is \"{}\", but architectures is {}", who_, given,
          list.dump());
  }
  return !given.empty() ? given : !of_architecture.empty() ? of_architecture : otherwise;
}

}  // namespace dtensor::nn
