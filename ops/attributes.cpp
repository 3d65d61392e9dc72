#include "ops/attributes.h"

#include <algorithm>
#include <bit>

namespace dtensor {

std::string to_string(const AttributeValue& value) {
  struct Print {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(int64_t i) const { return fmt::format("{}", i); }
    std::string operator()(double d) const { return fmt::format("{}", d); }
    std::string operator()(const std::vector<int64_t>& v) const { return fmt::format("{}", fmt::join(v, ",")); }
    std::string operator()(DType t) const { return std::string(name(t)); }
    std::string operator()(const std::string& s) const { return s; }
  };
  return std::visit(Print{}, value);
}

void Attributes::set(std::string_view name, AttributeValue value) {
  for (auto& [n, v] : list_)
    if (n == name) {
      v = std::move(value);
      return;
    }
  list_.emplace_back(std::string(name), std::move(value));
}

uint64_t Attributes::hash() const {
  uint64_t h = 0;
  auto mix = [&](uint64_t x) { h = (h ^ x) * 0x9e3779b97f4a7c15u, h ^= h >> 29; };
  for (const auto& [n, v] : list_) {
    mix(std::hash<std::string_view>{}(n));
    mix(v.index());
    if (auto* b = std::get_if<bool>(&v)) mix(*b);
    if (auto* i = std::get_if<int64_t>(&v)) mix(uint64_t(*i));
    if (auto* d = std::get_if<double>(&v)) mix(std::bit_cast<uint64_t>(*d));
    if (auto* t = std::get_if<DType>(&v)) mix(uint64_t(*t));
    if (auto* s = std::get_if<std::string>(&v)) mix(std::hash<std::string_view>{}(*s));
    if (auto* l = std::get_if<std::vector<int64_t>>(&v))
      for (int64_t i : *l) mix(uint64_t(i));
  }
  return h;
}

std::string Attributes::to_string() const {
  std::string text;
  for (const auto& [n, v] : list_) text += fmt::format("{}{}={}", text.empty() ? "" : " ", n, dtensor::to_string(v));
  return text;
}

}  // namespace dtensor
