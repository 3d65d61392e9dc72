// Functions by their PyTorch names, called with named values: for tools, tests and documents.
#pragma once

#include <functional>
#include <optional>

#include "ops/call.h"

namespace dtensor::ops {

// What a function is called with. Every value has a name, an absent one its default; what nobody asked for is an error.
class Arguments {
 public:
  Arguments(std::string_view function, std::span<const DistributedTensor* const> inputs, const Attributes& attributes)
      : function_(function), inputs_(inputs), attributes_(attributes) {}

  const DistributedTensor& tensor(size_t i);
  DistributedTensor optional_tensor(size_t i);  // undefined where there is none
  std::vector<DistributedTensor> tensors(size_t from = 0);
  bool has(std::string_view name) const { return attributes_.has(name); }

  int64_t integer(std::string_view name, std::optional<int64_t> otherwise = {});
  double number(std::string_view name, std::optional<double> otherwise = {});
  bool flag(std::string_view name, bool otherwise = false);
  std::string text(std::string_view name, std::optional<std::string> otherwise = {});
  DType dtype(std::string_view name, DType otherwise);
  // "shape=8,4,4"; one integer is a list of one.
  std::vector<int64_t> list(std::string_view name, std::optional<std::vector<int64_t>> otherwise = {});
  Shape shape(std::string_view name);
  // "dim=1", "dim=0,2" or the same as "dims"; none: all, as an empty list.
  std::vector<int64_t> dims();

  // An error where an input or a value was given that the function does not take.
  void check_all_used() const;

 private:
  const AttributeValue* use(std::string_view name, bool needed);
  std::string_view function_;
  std::span<const DistributedTensor* const> inputs_;
  const Attributes& attributes_;
  size_t inputs_used_ = 0;
  std::vector<std::string> used_;
};

struct Function {
  std::string_view name;
  std::string_view signature;  // "sum(x, dim=all, keepdim=false)"
  std::vector<DistributedTensor> (*run)(Arguments&);
};

// All of them, by family.
std::span<const Function> functions();

// Calls the function of that name. Errors: no such name (the nearest is told), values it does not take.
std::vector<DistributedTensor> call_function(std::string_view name, std::span<const DistributedTensor* const> inputs,
                                             const Attributes& attributes = {});

}  // namespace dtensor::ops
