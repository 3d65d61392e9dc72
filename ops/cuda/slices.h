// For the CUDA kernels of cards along some dimensions: an operand as slices, without a copy where it can be.
#pragma once

#include "ops/cuda/kernels.h"
#include "ops/cuda/reduce.h"
#include "ops/family/dims.h"

namespace dtensor::cuda {

// x seen as [outer, n, inner] along Over::dims: permuted into [outer, n] where these are not side by side.
class Slices {
 public:
  Slices(const Context& c, const Tensor& x) : dims_(ops::dims_of(c.attributes)), together_(true) {
    for (size_t i = 1; i < dims_.size(); ++i) together_ &= dims_[i] == dims_[i - 1] + 1;
    x_ = (together_ ? x : x.permute(ops::dims_last(x.dims(), dims_))).contiguous();
    terms_ = {x_.bytes_data(), 1, ops::slice_size(x.shape(), dims_), 1};
    for (int d = 0; d < x.dims(); ++d) {
      if (std::binary_search(dims_.begin(), dims_.end(), d)) continue;
      (together_ && !dims_.empty() && d > dims_.back() ? terms_.inner : terms_.outer) *= x.size(d);
    }
  }

  const Terms& terms() const { return terms_; }
  // With memory for a reduction.
  Terms terms(const Context& c) {
    room_ = Tensor(c.allocator, DType::f64, {reduce_room / 8});
    Terms t = terms_;
    t.room = room_.bytes_data();
    return t;
  }
  int64_t count() const { return terms_.outer * terms_.inner; }
  // write(t): t shows `out`, or takes its place, with the elements in the order of terms().
  template <class F>
  void write(const Context& c, Tensor& out, F write) const {
    together_ ? write(out) : ops::write_slices(c, out, dims_, write);
  }

 private:
  const ops::Dims& dims_;
  bool together_;
  Tensor x_, room_;
  Terms terms_;
};

}  // namespace dtensor::cuda
