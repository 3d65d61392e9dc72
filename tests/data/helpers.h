// What the tests of tokenizers and data share.
#pragma once

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "placement/error.h"
#include "tests/folder.h"

namespace dtensor::testing {

using Catch::Contains;
using Catch::StartsWith;
using Json = nlohmann::ordered_json;

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "(no error)";
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline std::string reference_file(const std::string& name) {
  return std::string(DTENSOR_SOURCE_DIR) + "/tests/data/reference/" + name;
}
inline Json reference_json(const std::string& name) { return Json::parse(read_file(reference_file(name))); }

}  // namespace dtensor::testing
