#include "ops/core/named_values.h"

#include <fmt/format.h>

namespace dtensor {

std::string to_string(const NamedValue& value) {
  struct Print {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(int64_t i) const { return fmt::format("{}", i); }
    std::string operator()(double d) const { return fmt::format("{}", d); }
    std::string operator()(const std::vector<double>& v) const { return fmt::format("{}", fmt::join(v, ",")); }
    std::string operator()(const std::vector<int64_t>& v) const { return fmt::format("{}", fmt::join(v, ",")); }
    std::string operator()(DType t) const { return std::string(name(t)); }
    std::string operator()(const std::string& s) const { return s; }
  };
  return std::visit(Print{}, value);
}

void NamedValues::set(std::string_view name, NamedValue value) {
  for (auto& [n, v] : list_)
    if (n == name) {
      v = std::move(value);
      return;
    }
  list_.emplace_back(std::string(name), std::move(value));
}

const NamedValue* NamedValues::find(std::string_view name) const {
  for (const auto& [n, v] : list_)
    if (n == name) return &v;
  return nullptr;
}

std::string NamedValues::to_string() const {
  std::string text;
  for (const auto& [n, v] : list_) text += fmt::format("{}{}={}", text.empty() ? "" : " ", n, dtensor::to_string(v));
  return text;
}

}  // namespace dtensor
