// Attributes: what an op is told besides its tensors, as named values: dim=-1, shape=8,4,4, eps=1e-06, reduction=mean.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "placement/dtype.h"
#include "placement/error.h"

namespace dtensor {

using AttributeValue = std::variant<bool, int64_t, double, std::vector<int64_t>, DType, std::string>;

std::string to_string(const AttributeValue& value);

// A double is a run-time number: calls that differ by its value are one call to the dispatcher's cache, to which only
// its class is known (zero, positive, negative, infinite, NaN). So are the integers that a card names as run-time
// values: `run_time` below. All else is part of the cache's key.
class Attributes {
 public:
  Attributes() = default;
  Attributes(std::initializer_list<std::pair<std::string_view, AttributeValue>> list) {
    list_.reserve(list.size());
    for (const auto& [name, value] : list) set(name, value);
  }

  void set(std::string_view name, AttributeValue value);
  bool has(std::string_view name) const { return find(name) != nullptr; }
  // The value of that name. Errors: none of that name, or one of another type. An integer serves as a double.
  template <class T>
  const T& get(std::string_view name) const {
    const AttributeValue* v = find(name);
    if (!v) fail("[attributes] \"{}\" is missing in \"{}\"", name, to_string());
    const T* t = std::get_if<T>(v);
    if (!t) fail("[attributes] \"{}\" has another type than the op needs: {}", name, dtensor::to_string(*v));
    return *t;
  }
  template <class T>
  T get(std::string_view name, T otherwise) const {
    return has(name) ? get<T>(name) : otherwise;
  }

  const std::vector<std::pair<std::string, AttributeValue>>& list() const { return list_; }
  bool empty() const { return list_.empty(); }
  std::string to_string() const;  // "dim=-1 keepdim=true"

  using Names = std::span<const std::string_view>;
  // What a decision may depend on: without the run-time values, and of a double its class: 0, 1, -1, inf, -inf or NaN.
  Attributes key(Names run_time) const;
  uint64_t key_hash(Names run_time) const;
  // Whether key(run_time) is `key`, NaN being equal to NaN.
  bool has_key(const Attributes& key, Names run_time) const;
  friend bool operator==(const Attributes&, const Attributes&) = default;

 private:
  const AttributeValue* find(std::string_view name) const {
    for (const auto& [n, v] : list_)
      if (n == name) return &v;
    return nullptr;
  }
  std::vector<std::pair<std::string, AttributeValue>> list_;
};

}  // namespace dtensor
