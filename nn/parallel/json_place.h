// Reading JSON with errors that say where in the file something stands.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "placement/dtype.h"

namespace dtensor::nn {

// As a part of a JSON path: lm_head, "model.norm".
std::string quoted(const std::string& key);

// A value in a plan and where it stands: tensor_parallel.plan."lm_head".style
struct JsonPlace {
  const nlohmann::ordered_json& value;
  std::string path;

  bool has(const char* key) const { return value.contains(key); }
  JsonPlace at(const std::string& key) const;
  JsonPlace at(size_t index) const;
  [[noreturn]] void error(const std::string& what) const;
  // The value as what it must be. Errors: it is something else.
  std::string text() const;
  bool boolean() const;
  int integer(int least, int most) const;
  DType dtype() const;                     // "fp32" or "bf16"
  std::vector<std::string> texts() const;  // one or a list
  // An object of these fields alone, of which the required ones are there.
  void fields(const std::vector<std::string>& known, const std::vector<std::string>& required = {}) const;
};

// What JsonPlace::dtype() reads.
inline const char* json_name(DType dtype) { return dtype == DType::bf16 ? "bf16" : "fp32"; }

// A list of one is written as its element.
template <class T, class F>
nlohmann::ordered_json one_or_list(const std::vector<T>& list, F to) {
  if (list.size() == 1) return to(list[0]);
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const T& x : list) array.push_back(to(x));
  return array;
}

}  // namespace dtensor::nn
