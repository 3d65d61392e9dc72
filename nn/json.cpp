#include "nn/json.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "placement/error.h"

namespace dtensor::nn {
namespace {

// Makes a value of what the parser reads. The parser's own way looks for each key among all those before it, which is
// slow for a vocabulary; it would silently lose a key that stands twice, and print by recursion what is nested.
class Builder {
 public:
  using Json = nlohmann::ordered_json;
  Builder(const std::string& file, const char* who) : file_(file), who_(who) {}
  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(int64_t value) { return add(value); }
  bool number_unsigned(uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t& value) { return add(std::move(value)); }  // JSON's text has none
  bool start_object(size_t) { return keys_.emplace_back(), open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool key(std::string& key) {
    check(keys_.back().insert(key).second, "[{}] {}: the key {} stands twice in one object", who_, file_,
          Json(key).dump());
    key_ = key;
    return true;
  }
  bool end_object() { return keys_.pop_back(), end_array(); }
  bool end_array() { return open_.pop_back(), true; }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) {  // or too large a number
    fail("[{}] {} is not JSON: {}", who_, file_, e.what());
  }

 private:
  bool add(Json value) { return place(std::move(value)), true; }
  Json& place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_array()) return open_.back()->emplace_back(std::move(value));
    return open_.back()->get_ref<Json::object_t&>().emplace_back(key_, std::move(value)).second;
  }
  bool open(Json value) {
    constexpr size_t deepest = 100;
    check(open_.size() < deepest, "[{}] {}: more than {} objects and arrays are nested in each other", who_, file_,
          deepest);
    open_.push_back(&place(std::move(value)));
    return true;
  }

  const std::string& file_;
  const char* who_;
  Json root_;
  std::vector<Json*> open_;  // from the root inwards; each is the last value of the one before, which does not move
  std::vector<std::set<std::string>> keys_;
  std::string key_;
};

}  // namespace

nlohmann::ordered_json load_json(const std::string& file, const char* who) {
  check(!std::filesystem::is_directory(file), "[{}] cannot read {}: it is a folder", who, file);
  std::ifstream in(file);
  check(in.good(), "[{}] cannot read {}: no such file, or no permission", who, file);
  return parse_json(std::string(std::istreambuf_iterator<char>(in), {}), file, who);
}

nlohmann::ordered_json parse_json(std::string_view text, const std::string& file, const char* who) {
  Builder builder(file, who);
  nlohmann::ordered_json::sax_parse(text, &builder);
  return builder.take();
}

std::string config_file(const std::string& path) {
  return std::filesystem::is_directory(path) ? (std::filesystem::path(path) / "config.json").string() : path;
}

}  // namespace dtensor::nn
