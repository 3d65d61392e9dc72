#include "ops/attributes.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>

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

namespace {

// The number that stands for all of its class: 0, 1, -1, inf, -inf, NaN.
double class_of(double d) { return std::isfinite(d) ? double((d > 0) - (d < 0)) : d; }
bool same_class(double a, double b) {
  return (a > 0) == (b > 0) && (a < 0) == (b < 0) && std::isnan(a) == std::isnan(b) && std::isinf(a) == std::isinf(b);
}

bool among(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

uint64_t hash_of(const AttributeValue& value) {
  struct Hash {
    uint64_t operator()(bool b) const { return b; }
    uint64_t operator()(int64_t i) const { return uint64_t(i); }
    uint64_t operator()(double d) const {
      return uint64_t(d > 0) | uint64_t(d < 0) << 1 | uint64_t(std::isfinite(d)) << 2;
    }
    uint64_t operator()(DType t) const { return uint64_t(t); }
    uint64_t operator()(const std::string& s) const { return std::hash<std::string_view>{}(s); }
    uint64_t operator()(const std::vector<int64_t>& v) const {
      uint64_t h = v.size();
      for (int64_t i : v) h = (h ^ uint64_t(i)) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
      return h;
    }
  };
  return std::visit(Hash{}, value);
}

}  // namespace

Attributes Attributes::key(Names run_time) const {
  Attributes k;
  for (const auto& [n, v] : list_) {
    if (among(run_time, n)) continue;
    const double* d = std::get_if<double>(&v);
    k.list_.emplace_back(n, d ? AttributeValue(class_of(*d)) : v);
  }
  return k;
}

uint64_t Attributes::key_hash(Names run_time) const {
  uint64_t h = 0;
  auto mix = [&](uint64_t x) { h = (h ^ x) * 0x9e3779b97f4a7c15u, h ^= h >> 29; };
  for (const auto& [n, v] : list_) {
    if (among(run_time, n)) continue;
    // Of the name enough to tell apart those of one card; has_key() compares the rest.
    mix(hash_of(v) ^ uint64_t(v.index()) << 32 ^ uint64_t(n.size()) << 40 ^ uint64_t(uint8_t(n[0])) << 48);
  }
  return h;
}

bool Attributes::has_key(const Attributes& key, Names run_time) const {
  size_t at = 0;
  for (const auto& [n, v] : list_) {
    if (among(run_time, n)) continue;
    if (at == key.list_.size()) return false;
    const auto& [key_name, key_value] = key.list_[at++];
    const double *d = std::get_if<double>(&v), *k = std::get_if<double>(&key_value);
    if (n != key_name || !(d && k ? same_class(*d, *k) : v == key_value)) return false;
  }
  return at == key.list_.size();
}

std::string Attributes::to_string() const {
  std::string text;
  for (const auto& [n, v] : list_) text += fmt::format("{}{}={}", text.empty() ? "" : " ", n, dtensor::to_string(v));
  return text;
}

}  // namespace dtensor
