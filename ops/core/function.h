// Functions by their PyTorch names, called with named values: for tools, tests and documents.
#pragma once

#include <functional>
#include <optional>

#include "dtensor/distributed_tensor.h"
#include "ops/core/named_values.h"

namespace dtensor::ops {

// What a function is called with. Every value has a name, an absent one its default; what nobody asked for is an error.
class Arguments {
 public:
  Arguments(std::string_view signature, std::span<const DistributedTensor* const> inputs, const NamedValues& values)
      : signature_(signature), inputs_(inputs), values_(values) {}
  std::string_view function() const { return signature_.substr(0, signature_.find('(')); }
  // "x, dim=all" of "sum(x, dim=all)".
  std::string_view parameters() const;

  const DistributedTensor& tensor(size_t i);
  DistributedTensor optional_tensor(size_t i);  // undefined where there is none
  std::vector<DistributedTensor> tensors(size_t from = 0);
  bool has(std::string_view name) { return use(name, false); }

  int64_t integer(std::string_view name, std::optional<int64_t> otherwise = {});
  double number(std::string_view name, std::optional<double> otherwise = {});
  bool flag(std::string_view name, bool otherwise = false);
  std::string text(std::string_view name, std::optional<std::string> otherwise = {});
  DType dtype(std::string_view name);
  // "shape=8,4,4"; one integer is a list of one.
  std::vector<int64_t> list(std::string_view name, std::optional<std::vector<int64_t>> otherwise = {});
  // "frequencies=1,0.5"; one number is a list of one.
  std::vector<double> numbers(std::string_view name, std::optional<std::vector<double>> otherwise = {});
  Shape shape(std::string_view name);
  // "dim=1", "dim=0,2" or the same as "dims"; none: all, as an empty list.
  Shape dims();

  // The next parameter of those left, of a C++ type.
  template <class T>
  auto take(std::string_view& rest);

  // An error where an input or a value was given that the function does not take.
  void check_all_used() const;

 private:
  const NamedValue* use(std::string_view name, bool needed);
  std::string_view signature_;
  std::span<const DistributedTensor* const> inputs_;
  const NamedValues& values_;
  size_t inputs_used_ = 0;
  std::vector<std::string> used_;
};

using List = std::vector<DistributedTensor>;

// A public function as a card lists it.
struct Function {
  std::string_view name;
  // "sum(x, dim=all, keepdim=false)": the parameters in C++'s order. What has no "=" is a tensor; "x..." all of them;
  // "mask=none" may be absent; "dim=" has no default.
  std::string_view signature;
  std::string_view doc;  // one line
  std::vector<DistributedTensor> (*run)(Arguments&);
};

// --- A C++ function as one with named values: its signature says the names and defaults, its type the rest.

// The next parameter of a signature; the rest is left.
struct Parameter {
  std::string_view name, otherwise;  // "dim" and "-1"
};
Parameter next_parameter(std::string_view& rest);

template <class T>
auto Arguments::take(std::string_view& rest) {
  auto [name, otherwise] = next_parameter(rest);
  bool absent = otherwise == "none" || otherwise == "all";
  if constexpr (std::is_same_v<T, DistributedTensor>) {
    return absent ? optional_tensor(inputs_used_) : tensor(inputs_used_);
  } else if constexpr (std::is_same_v<T, std::vector<DistributedTensor>>) {
    return tensors(inputs_used_);
  } else if constexpr (std::is_same_v<T, Shape>) {
    return absent ? dims() : shape(name);
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    return list(name);
  } else if constexpr (std::is_same_v<T, bool>) {
    return flag(name, otherwise == "true");
  } else if constexpr (std::is_same_v<T, DType>) {
    return dtype(name);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return text(name, otherwise.empty() ? std::nullopt : std::optional(std::string(otherwise)));
  } else if constexpr (std::is_same_v<T, std::optional<double>>) {
    return has(name) ? std::optional(number(name)) : std::nullopt;
  } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
    return has(name) ? std::optional(integer(name)) : std::nullopt;
  } else if constexpr (std::is_same_v<T, double>) {
    return number(name, otherwise.empty() ? std::nullopt : std::optional(std::stod(std::string(otherwise))));
  } else {
    static_assert(std::is_same_v<T, int64_t>, "a parameter of another type needs a function of its own");
    return integer(name, otherwise.empty() ? std::nullopt : std::optional<int64_t>(std::stoll(std::string(otherwise))));
  }
}

template <auto f>
struct Bound;
template <class R, class... A, R (*f)(A...)>
struct Bound<f> {
  static std::vector<DistributedTensor> run(Arguments& a) {
    std::string_view rest = a.parameters();
    return list_of(std::apply(
        f, std::tuple<decltype(a.take<std::remove_cvref_t<A>>(rest))...>{a.take<std::remove_cvref_t<A>>(rest)...}));
  }

 private:
  static std::vector<DistributedTensor> list_of(DistributedTensor y) { return {std::move(y)}; }
  static std::vector<DistributedTensor> list_of(std::vector<DistributedTensor> list) { return list; }
  static std::vector<DistributedTensor> list_of(std::tuple<DistributedTensor, DistributedTensor> two) {
    return {std::get<0>(two), std::get<1>(two)};
  }
};

constexpr Function function(std::string_view signature, std::string_view doc,
                            std::vector<DistributedTensor> (*run)(Arguments&)) {
  return {signature.substr(0, signature.find('(')), signature, doc, run};
}
template <auto f>
constexpr Function function(std::string_view signature, std::string_view doc) {
  return function(signature, doc, Bound<f>::run);
}

// Functions of a tensor and another or a number: "add(x, y | value=)".
template <DistributedTensor (*of_two)(const DistributedTensor&, const DistributedTensor&),
          DistributedTensor (*with_value)(const DistributedTensor&, double)>
std::vector<DistributedTensor> binary_or_value(Arguments& a) {
  return {a.has("value") ? with_value(a.tensor(0), a.number("value")) : of_two(a.tensor(0), a.tensor(1))};
}

}  // namespace dtensor::ops
