#include "nn/json.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "placement/error.h"

namespace dtensor::nn {

nlohmann::ordered_json load_json(const std::string& file, const char* who) {
  check(!std::filesystem::is_directory(file), "[{}] cannot read {}: it is a folder", who, file);
  std::ifstream in(file);
  check(in.good(), "[{}] cannot read {}: no such file, or no permission", who, file);
  return parse_json(std::string(std::istreambuf_iterator<char>(in), {}), file, who);
}

nlohmann::ordered_json parse_json(std::string_view text, const std::string& file, const char* who) {
  // A key that stands twice in one object would silently lose one of its values; printing recurses into what is nested.
  using Json = nlohmann::ordered_json;
  constexpr int deepest = 100;
  std::vector<std::set<std::string>> keys;
  Json::parser_callback_t judge = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start)
      check(depth < deepest, "[{}] {}: more than {} objects and arrays are nested in each other", who, file, deepest);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key)
      check(keys.back().insert(parsed.get<std::string>()).second, "[{}] {}: the key {} stands twice in one object", who,
            file, parsed.dump());
    return true;
  };
  try {
    return Json::parse(text, judge);
  } catch (const nlohmann::json::exception& e) {  // of the text, or of a number that is too large
    fail("[{}] {} is not JSON: {}", who, file, e.what());
  }
}

std::string config_file(const std::string& path) {
  return std::filesystem::is_directory(path) ? (std::filesystem::path(path) / "config.json").string() : path;
}

}  // namespace dtensor::nn
