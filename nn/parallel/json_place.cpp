#include "nn/parallel/json_place.h"

#include <fmt/format.h>

#include "placement/error.h"
#include "placement/nearest.h"

namespace dtensor::nn {

std::string quoted(const std::string& key) {
  bool plain = key.find_first_of(".*\" ") == std::string::npos && !key.empty();
  return plain ? key : fmt::format("\"{}\"", key);
}

JsonPlace JsonPlace::at(const std::string& key) const {
  return {value.at(key), fmt::format("{}{}{}", path, path.empty() ? "" : ".", quoted(key))};
}

JsonPlace JsonPlace::at(size_t index) const { return {value.at(index), fmt::format("{}[{}]", path, index)}; }

void JsonPlace::error(const std::string& what) const { fail("[plan] {}: {}", path.empty() ? "the file" : path, what); }

std::string JsonPlace::text() const {
  if (!value.is_string()) error(fmt::format("{} is no string", value.dump()));
  return value.get<std::string>();
}

bool JsonPlace::boolean() const {
  if (!value.is_boolean()) error("true or false");
  return value.get<bool>();
}

int JsonPlace::integer(int least, int most) const {
  // What is beyond int64_t would be read as something else.
  bool huge = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
  if (!value.is_number_integer() || huge || value.get<int64_t>() < least || value.get<int64_t>() > most)
    error(fmt::format("{} is no integer from {} to {}", value.dump(), least, most));
  return value.get<int>();
}

DType JsonPlace::dtype() const {
  std::string type = text();
  if (type != "fp32" && type != "bf16") error(fmt::format("\"{}\" is not supported; use \"fp32\" or \"bf16\"", type));
  return type == "bf16" ? DType::bf16 : DType::f32;
}

std::vector<std::string> JsonPlace::texts() const {
  if (!value.is_array()) return {text()};
  std::vector<std::string> list;
  for (size_t i = 0; i < value.size(); ++i) list.push_back(at(i).text());
  return list;
}

void JsonPlace::fields(const std::vector<std::string>& known, const std::vector<std::string>& required) const {
  if (!value.is_object()) error(fmt::format("{} is no object", value.dump()));
  for (const auto& [key, v] : value.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      error(fmt::format("there is no field \"{}\"{} (fields: {})", key, nearest_hint(key, known),
                        fmt::join(known, ", ")));
  for (const std::string& key : required)
    if (!value.contains(key)) error(fmt::format("\"{}\" is missing", key));
}

}  // namespace dtensor::nn
