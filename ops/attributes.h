// Attributes: what an op is told besides its tensors, as named values: dim=-1, shape=8,4,4, eps=1e-06, reduction=mean.
#pragma once

#include <initializer_list>
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

// Part of every cache key, so two calls with equal attributes are the same call.
class Attributes {
 public:
  Attributes() = default;
  Attributes(std::initializer_list<std::pair<std::string_view, AttributeValue>> list) {
    for (const auto& [name, value] : list) set(name, value);
  }

  void set(std::string_view name, AttributeValue value);
  bool has(std::string_view name) const { return find(name) != nullptr; }
  // The value of that name. Errors: none of that name, or one of another type. An integer serves as a double.
  template <class T>
  const T& get(std::string_view name) const {
    const AttributeValue* v = find(name);
    check(v, "[attributes] \"{}\" is missing in \"{}\"", name, to_string());
    const T* t = std::get_if<T>(v);
    check(t, "[attributes] \"{}\" has another type than the op needs: {}", name, dtensor::to_string(*v));
    return *t;
  }
  template <class T>
  T get(std::string_view name, T otherwise) const {
    return has(name) ? get<T>(name) : otherwise;
  }

  const std::vector<std::pair<std::string, AttributeValue>>& list() const { return list_; }
  bool empty() const { return list_.empty(); }
  uint64_t hash() const;
  std::string to_string() const;  // "dim=-1 keepdim=true"
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
