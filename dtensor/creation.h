// Making distributed tensors: each rank makes its part only, nothing is communicated, and the value is the same on
// every mesh.
#pragma once

#include <variant>

#include "dtensor/distributed_tensor.h"
#include "dtensor/local/number.h"
#include "dtensor/random.h"

namespace dtensor {

// What to make: a specification, or its text in the one notation, zeros(mesh, "f32[8,16] tp=Shard(1)").
class SpecOrText {
 public:
  SpecOrText(const TensorSpec& spec) : given_(spec) {}
  SpecOrText(DType dtype, const Shape& shape, const Layout& layout = {}) : given_(TensorSpec{dtype, shape, layout}) {}
  SpecOrText(std::string_view text) : given_(text) {}
  SpecOrText(const std::string& text) : given_(std::string_view(text)) {}
  SpecOrText(const char* text) : given_(std::string_view(text)) {}
  // Errors: those of parse_spec.
  TensorSpec on(const DeviceMesh& mesh) const {
    const auto* text = std::get_if<std::string_view>(&given_);
    return text ? parse_spec(*text, mesh.shape()) : std::get<TensorSpec>(given_);
  }

 private:
  std::variant<TensorSpec, std::string_view> given_;
};

// On the rank's device; meta tensors get no value. On Partial axes coordinate 0 holds the value and the others the
// identity of the reduction; of min, max and avg all hold it, as with distribute(). Element types are f32, f64, i64 and
// bool; bf16 is an error on the CPU.
DistributedTensor empty(const DeviceMesh& mesh, const SpecOrText& spec);  // contents undefined
DistributedTensor zeros(const DeviceMesh& mesh, const SpecOrText& spec);
DistributedTensor ones(const DeviceMesh& mesh, const SpecOrText& spec);
// Errors: an i64 tensor of what is no integer.
DistributedTensor full(const DeviceMesh& mesh, const SpecOrText& spec, Number value);

// start, start + step, ... as long as they are before `end` (after it, where step is negative). Floating values are
// start + i * step in f64, rounded once. Errors: a step of 0, a bool tensor, a shape other than [the number of values].
DistributedTensor arange(const DeviceMesh& mesh, const SpecOrText& spec, Number start, Number end, Number step = 1);
// 0, 1, ... of a tensor of one dimension.
DistributedTensor arange(const DeviceMesh& mesh, const SpecOrText& spec);
// Ones on the diagonal, else zeros. Errors: not two dimensions.
DistributedTensor eye(const DeviceMesh& mesh, const SpecOrText& spec);

// Random numbers of a named stream, law 5: element i gets the same number on every mesh. See dtensor/random.h.
DistributedTensor uniform(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double low,
                          double high);
DistributedTensor normal(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double mean,
                         double std);
DistributedTensor bernoulli(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double p);
// uniform(0, 1) and normal(0, 1).
DistributedTensor rand(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream);
DistributedTensor randn(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream);

// The same with the specification of x, and on its device: of a meta tensor they are meta.
DistributedTensor empty_like(const DistributedTensor& x);
DistributedTensor zeros_like(const DistributedTensor& x);
DistributedTensor ones_like(const DistributedTensor& x);
DistributedTensor full_like(const DistributedTensor& x, Number value);
DistributedTensor rand_like(const DistributedTensor& x, const RandomStream& stream);
DistributedTensor randn_like(const DistributedTensor& x, const RandomStream& stream);

}  // namespace dtensor
