#include "ops/core/function.h"

#include <fmt/format.h>

namespace dtensor::ops {

const DistributedTensor& Arguments::tensor(size_t i) {
  check(i < inputs_.size() && inputs_[i], "[{}] tensor {} is missing; {} are given", function(), i, inputs_.size());
  inputs_used_ = std::max(inputs_used_, i + 1);
  return *inputs_[i];
}

DistributedTensor Arguments::optional_tensor(size_t i) {
  inputs_used_ = std::max(inputs_used_, i + 1);
  return i < inputs_.size() && inputs_[i] ? *inputs_[i] : DistributedTensor();
}

std::vector<DistributedTensor> Arguments::tensors(size_t from) {
  std::vector<DistributedTensor> list;
  for (size_t i = from; i < inputs_.size(); ++i) list.push_back(tensor(i));
  return list;
}

const NamedValue* Arguments::use(std::string_view name, bool needed) {
  used_.emplace_back(name);
  if (const NamedValue* v = values_.find(name)) return v;
  check(!needed, "[{}] \"{}\" is missing", function(), name);
  return nullptr;
}

int64_t Arguments::integer(std::string_view name, std::optional<int64_t> otherwise) {
  const NamedValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  const auto* i = std::get_if<int64_t>(v);
  check(i, "[{}] \"{}={}\" is no integer", function(), name, dtensor::to_string(*v));
  return *i;
}

double Arguments::number(std::string_view name, std::optional<double> otherwise) {
  const NamedValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return double(*i);
  const auto* d = std::get_if<double>(v);
  check(d, "[{}] \"{}={}\" is no number", function(), name, dtensor::to_string(*v));
  return *d;
}

bool Arguments::flag(std::string_view name, bool otherwise) {
  const NamedValue* v = use(name, false);
  if (!v) return otherwise;
  const auto* b = std::get_if<bool>(v);
  check(b, "[{}] \"{}={}\" is neither true nor false", function(), name, dtensor::to_string(*v));
  return *b;
}

std::string Arguments::text(std::string_view name, std::optional<std::string> otherwise) {
  const NamedValue* v = use(name, !otherwise);
  return v ? dtensor::to_string(*v) : *otherwise;
}

DType Arguments::dtype(std::string_view name) {
  const NamedValue* v = use(name, true);
  const auto* t = std::get_if<DType>(v);
  check(t, "[{}] \"{}={}\" is no element type", function(), name, dtensor::to_string(*v));
  return *t;
}

std::vector<int64_t> Arguments::list(std::string_view name, std::optional<std::vector<int64_t>> otherwise) {
  const NamedValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return {*i};
  const auto* l = std::get_if<std::vector<int64_t>>(v);
  check(l, "[{}] \"{}={}\" is no list of integers", function(), name, dtensor::to_string(*v));
  return *l;
}

std::vector<double> Arguments::numbers(std::string_view name, std::optional<std::vector<double>> otherwise) {
  const NamedValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* numbers = std::get_if<std::vector<double>>(v)) return *numbers;
  if (const auto* integers = std::get_if<std::vector<int64_t>>(v)) return {integers->begin(), integers->end()};
  return {number(name)};
}

Shape Arguments::shape(std::string_view name) {
  std::vector<int64_t> l = list(name);
  check(l.size() <= size_t(max_dims), "[{}] {} dimensions; at most {} are supported", function(), l.size(), max_dims);
  return Shape(l.begin(), l.end());
}

Shape Arguments::dims() {
  use("dims", false);
  return has("dims") ? shape("dims") : has("dim") ? shape("dim") : (use("dim", false), Shape());
}

void Arguments::check_all_used() const {
  check(inputs_used_ >= inputs_.size(), "[{}] takes {} tensors, not {}", function(), inputs_used_, inputs_.size());
  for (const auto& [n, v] : values_.list())
    check(std::find(used_.begin(), used_.end(), n) != used_.end(), "[{}] takes no \"{}\"; it takes {}", function(), n,
          used_.empty() ? "none" : fmt::format("{}", fmt::join(used_, ", ")));
}

std::string_view Arguments::parameters() const {
  size_t open = signature_.find('(');
  return signature_.substr(open + 1, signature_.rfind(')') - open - 1);
}

Parameter next_parameter(std::string_view& rest) {
  size_t end = rest.find(", "), equals = rest.substr(0, end).find('=');
  std::string_view one = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 2);
  return {one.substr(0, equals), equals == std::string_view::npos ? std::string_view() : one.substr(equals + 1)};
}

}  // namespace dtensor::ops
