#include "ops/functions.h"

#include <fmt/format.h>

#include "placement/nearest.h"

namespace dtensor::ops {

const DistributedTensor& Arguments::tensor(size_t i) {
  check(i < inputs_.size() && inputs_[i], "[{}] tensor {} is missing; {} are given", function_, i, inputs_.size());
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

const AttributeValue* Arguments::use(std::string_view name, bool needed) {
  used_.emplace_back(name);
  for (const auto& [n, v] : attributes_.list())
    if (n == name) return &v;
  check(!needed, "[{}] \"{}\" is missing", function_, name);
  return nullptr;
}

int64_t Arguments::integer(std::string_view name, std::optional<int64_t> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  const auto* i = std::get_if<int64_t>(v);
  check(i, "[{}] \"{}={}\" is no integer", function_, name, dtensor::to_string(*v));
  return *i;
}

double Arguments::number(std::string_view name, std::optional<double> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return double(*i);
  const auto* d = std::get_if<double>(v);
  check(d, "[{}] \"{}={}\" is no number", function_, name, dtensor::to_string(*v));
  return *d;
}

bool Arguments::flag(std::string_view name, bool otherwise) {
  const AttributeValue* v = use(name, false);
  if (!v) return otherwise;
  const auto* b = std::get_if<bool>(v);
  check(b, "[{}] \"{}={}\" is neither true nor false", function_, name, dtensor::to_string(*v));
  return *b;
}

std::string Arguments::text(std::string_view name, std::optional<std::string> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  return v ? dtensor::to_string(*v) : *otherwise;
}

DType Arguments::dtype(std::string_view name, DType otherwise) {
  const AttributeValue* v = use(name, false);
  if (!v) return otherwise;
  const auto* t = std::get_if<DType>(v);
  check(t, "[{}] \"{}={}\" is no element type", function_, name, dtensor::to_string(*v));
  return *t;
}

std::vector<int64_t> Arguments::list(std::string_view name, std::optional<std::vector<int64_t>> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return {*i};
  const auto* l = std::get_if<std::vector<int64_t>>(v);
  check(l, "[{}] \"{}={}\" is no list of integers", function_, name, dtensor::to_string(*v));
  return *l;
}

Shape Arguments::shape(std::string_view name) {
  std::vector<int64_t> l = list(name);
  check(l.size() <= size_t(max_dims), "[{}] {} dimensions; at most {} are supported", function_, l.size(), max_dims);
  return Shape(l.begin(), l.end());
}

std::vector<int64_t> Arguments::dims() { return list("dim", list("dims", std::vector<int64_t>())); }

void Arguments::check_all_used() const {
  check(inputs_used_ >= inputs_.size(), "[{}] takes {} tensors, not {}", function_, inputs_used_, inputs_.size());
  for (const auto& [n, v] : attributes_.list())
    check(std::find(used_.begin(), used_.end(), n) != used_.end(), "[{}] takes no \"{}\"; it takes {}", function_, n,
          used_.empty() ? "none" : fmt::format("{}", fmt::join(used_, ", ")));
}

std::vector<DistributedTensor> call_function(std::string_view name, std::span<const DistributedTensor* const> inputs,
                                             const Attributes& attributes) {
  std::vector<std::string> names;
  for (const Function& f : functions()) {
    names.emplace_back(f.name);
    if (f.name != name) continue;
    Arguments arguments(f.name, inputs, attributes);
    std::vector<DistributedTensor> outputs = f.run(arguments);
    arguments.check_all_used();
    return outputs;
  }
  fail("[call_function] there is no function \"{}\"{}", name, nearest_hint(name, names));
}

}  // namespace dtensor::ops
