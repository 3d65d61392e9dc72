#include "nn/json.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "placement/error.h"

namespace dtensor::nn {

nlohmann::ordered_json load_json(const std::string& file, const char* who) {
  check(!std::filesystem::is_directory(file), "[{}] cannot read {}: it is a folder", who, file);
  std::ifstream in(file);
  check(in.good(), "[{}] cannot read {}: no such file, or no permission", who, file);
  try {
    return nlohmann::ordered_json::parse(in);
  } catch (const nlohmann::json::parse_error& e) {
    fail("[{}] {} is not JSON: {}", who, file, e.what());
  }
}

}  // namespace dtensor::nn
