// The CUDA kernels of ops/reduction/statistics.cpp.
#include "ops/reduction/statistics.h"

#include "ops/cuda/slices.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

// The global number of elements of a slice.
double count_of(const Context& c) {
  double n = 1;
  for (char f : ops::factors_in(ops::dims_of(c.attributes))) n *= double(c.size(f));
  return n;
}
Centred centred(const Context& c, const Tensor& sum) {
  double n = count_of(c);
  return {sum.bytes_data(), n, ops::variance_factor(n, c.attributes.as<ops::Var>().correction),
          c.attributes.as<ops::Var>().std, true};
}
double p_of(const Context& c) { return c.attributes.as<ops::VectorNorm>().p; }

void var(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  Terms t = s.terms(c);
  sum_exact(c.stream(), in[0].dtype(), t, out[1].bytes_data());
  centred_squares(c.stream(), in[0].dtype(), t, centred(c, out[1]), out[0].bytes_data());
}
void centred_sum(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  centred_squares(c.stream(), in[0].dtype(), s.terms(c), {in[1].bytes_data(), count_of(c)}, out[0].bytes_data());
}
void backward_of_var(const Context& c, In in, Out out) {
  Slices s(c, in[1]);
  s.write(c, out[0], [&](Tensor& dx) {
    var_backward(c.stream(), in[1].dtype(), s.terms(), centred(c, in[2]), in[0].bytes_data(), in[3].bytes_data(),
                 dx.bytes_data());
  });
}

// One number of each slice, in the type of statistics.
Tensor of_slices(const Context& c, const Slices& s, DType type) {
  return Tensor(c.allocator, ops::statistics_type(type), {s.count()});
}
void norm(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  Terms t = s.terms(c);
  Tensor m = of_slices(c, s, in[0].dtype());
  extreme(c.stream(), in[0].dtype(), t, p_of(c) < 0, true, m.bytes_data());
  power_sum(c.stream(), in[0].dtype(), t, p_of(c), m.bytes_data(), true, out[0].bytes_data());
}
void powers(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  power_sum(c.stream(), in[0].dtype(), s.terms(c), p_of(c), in[1].bytes_data(), false, out[0].bytes_data());
}
void root(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 0}, {1, 0}});
  norm_root(c.stream(), in[0].dtype(), in[0].numel(), c.attributes.as<ops::Root>().p, in[0].bytes_data(),
            in[1].bytes_data(), out[0].bytes_data());
}
void backward_of_norm(const Context& c, In in, Out out) {
  Slices s(c, in[1]);
  s.write(c, out[0], [&](Tensor& dx) {
    norm_backward(c.stream(), in[1].dtype(), s.terms(), p_of(c), in[0].bytes_data(), in[2].bytes_data(),
                  dx.bytes_data());
  });
}

void logsumexp(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  Terms t = s.terms(c);
  Tensor m = of_slices(c, s, in[0].dtype());
  extreme(c.stream(), in[0].dtype(), t, false, false, m.bytes_data());
  exp_sum(c.stream(), in[0].dtype(), t, m.bytes_data(), true, out[0].bytes_data());
}
void sum_of_exp(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  exp_sum(c.stream(), in[0].dtype(), s.terms(c), in[1].bytes_data(), false, out[0].bytes_data());
}
void backward_of_logsumexp(const Context& c, In in, Out out) {
  Slices s(c, in[1]);
  s.write(c, out[0], [&](Tensor& dx) {
    logsumexp_backward(c.stream(), in[1].dtype(), s.terms(), in[0].bytes_data(), in[2].bytes_data(), dx.bytes_data());
  });
}

}  // namespace

extern const KernelTable statistics_kernels;
const KernelTable statistics_kernels = {{&ops::var_op, var},
                                        {&ops::centred_squares_op, centred_sum},
                                        {&ops::var_backward_op, backward_of_var},
                                        {&ops::norm_op, norm},
                                        {&ops::power_sum_op, powers},
                                        {&ops::norm_root_op, root},
                                        {&ops::norm_backward_op, backward_of_norm},
                                        {&ops::logsumexp_op, logsumexp},
                                        {&ops::exp_sum_op, sum_of_exp},
                                        {&ops::logsumexp_backward_op, backward_of_logsumexp}};

}  // namespace dtensor::cuda
