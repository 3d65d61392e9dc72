// Reading JSON files with errors that name the file and the place.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace dtensor::nn {

// `who` is the public function for the error. Errors: a file that cannot be read; text that is not JSON, with its
// place; a number beyond a double; a key that stands twice in one object; more than 100 levels.
nlohmann::ordered_json load_json(const std::string& file, const char* who);
// The same of a text, which errors call `what`.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& what, const char* who);

// A file, or a folder's config.json.
std::string config_file(const std::string& path);

}  // namespace dtensor::nn
