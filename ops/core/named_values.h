// Named values: dim=-1, shape=8,4,4, eps=1e-06, reduction=mean. For tools, tests and texts, which know functions by
// name.
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

using NamedValue = std::variant<bool, int64_t, double, std::vector<int64_t>, std::vector<double>, DType, std::string>;

std::string to_string(const NamedValue& value);

class NamedValues {
 public:
  NamedValues() = default;
  NamedValues(std::initializer_list<std::pair<std::string_view, NamedValue>> list) {
    list_.reserve(list.size());
    for (const auto& [name, value] : list) set(name, value);
  }

  void set(std::string_view name, NamedValue value);
  // Null where there is none of that name.
  const NamedValue* find(std::string_view name) const;
  bool has(std::string_view name) const { return find(name) != nullptr; }

  const std::vector<std::pair<std::string, NamedValue>>& list() const { return list_; }
  bool empty() const { return list_.empty(); }
  std::string to_string() const;  // "dim=-1 keepdim=true"
  friend bool operator==(const NamedValues&, const NamedValues&) = default;

 private:
  std::vector<std::pair<std::string, NamedValue>> list_;
};

}  // namespace dtensor
