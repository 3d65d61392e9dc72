// The CUDA kernels of ops/layer/norm.cpp and ops/layer/layer_norm.cpp.
#include "ops/cuda/norm.h"

#include "ops/cuda/kernels.h"
#include "ops/family/dims.h"
#include "ops/layer/layer_norm.h"
#include "ops/layer/norm.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

Tensor partials(const Context& c, DType rows, const NormBackward& n) {
  return Tensor(c.allocator, ops::statistics_type(rows), {norm_partials(n.rows, n.d)});
}

void rms_norm(const Context& c, In in, Out out) {
  norm(c.stream(), in[0].dtype(),
       {.rows = rows_of(in[0]),
        .d = in[0].shape().back(),
        .eps = c.attributes.as<ops::RmsNorm>().eps,
        .x = in[0].bytes_data(),
        .w = in[1].bytes_data(),
        .y = out[0].bytes_data(),
        .rstd = out[1].bytes_data()});
}
void add_rms_norm(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 1}, {1, 1}});
  norm(c.stream(), in[0].dtype(),
       {.rows = rows_of(in[0]),
        .d = in[0].shape().back(),
        .eps = c.attributes.as<ops::RmsNorm>().eps,
        .x = in[0].bytes_data(),
        .residual = in[1].bytes_data(),
        .w = in[2].bytes_data(),
        .y = out[0].bytes_data(),
        .h = out[1].bytes_data(),
        .rstd = out[2].bytes_data()});
}
void rms_norm_backward(const Context& c, In in, Out out) {
  check_rows(c, in.first(4), {{0, 1}, {1, 1}, {3, 0}});
  if (in.size() > 4) check_rows(c, in, {{0, 1}, {4, 1}});
  NormBackward n{.rows = rows_of(in[1]),
                 .d = in[1].shape().back(),
                 .whole = in[1].shape().back(),
                 .dy = in[0].bytes_data(),
                 .x = in[1].bytes_data(),
                 .w = in[2].bytes_data(),
                 .rstd = in[3].bytes_data(),
                 .more = in.size() > 4 ? in[4].bytes_data() : nullptr,
                 .dx = out[0].bytes_data(),
                 .dw = out[1].bytes_data()};
  Tensor room = partials(c, in[1].dtype(), n);
  n.partial = room.bytes_data();
  norm_backward(c.stream(), in[1].dtype(), n);
}

// Rows of the last "normalized_dims" dimensions: of this rank, elements of each, and of the whole row.
struct Size {
  int64_t rows, d = 1, whole = 1;

  Size(const Context& c, In in, int x, std::initializer_list<int> statistics) {
    int n = int(c.attributes.as<ops::LastDims>().normalized_dims);
    const Tensor& t = in[size_t(x)];
    rows = rows_of(t, n);
    for (int i = t.dims() - n; i < t.dims(); ++i) d *= t.size(i);
    for (char f : ops::factors(n)) whole *= c.size(f);
    if (x > 0) check_rows(c, in, {{x, n}, {0, n}});
    for (int i : statistics)
      if (in[size_t(i)].defined()) check_rows(c, in, {{x, n}, {i, 0}});
  }
};

void layer_norm(const Context& c, In in, Out out) {
  Size s(c, in, 0, {});
  norm(c.stream(), in[0].dtype(),
       {.rows = s.rows,
        .d = s.d,
        .eps = c.attributes.as<ops::LayerNorm>().eps,
        .centre = true,
        .x = in[0].bytes_data(),
        .w = in[1].bytes_data(),
        .b = in[2].bytes_data(),
        .y = out[0].bytes_data(),
        .mean = out[1].bytes_data(),
        .rstd = out[2].bytes_data()});
}
void normalize(const Context& c, In in, Out out) {
  Size s(c, in, 0, {3, 4});
  norm(c.stream(), in[0].dtype(),
       {.rows = s.rows,
        .d = s.d,
        .given = true,
        .x = in[0].bytes_data(),
        .w = in[1].bytes_data(),
        .b = in[2].bytes_data(),
        .y = out[0].bytes_data(),
        .mean = in[3].bytes_data(),
        .rstd = in[4].bytes_data()});
}
void norm_statistics(const Context& c, In in, Out out) {
  if (in[0].defined()) check_rows(c, in, {{0, 0}, {1, 0}});
  const auto& statistics = c.attributes.as<ops::NormStatistics>();
  cuda::norm_statistics(c.stream(), in[1].dtype(), in[1].numel(), double(statistics.n), statistics.eps,
                        in[0].bytes_data(), in[1].bytes_data(), out[0].bytes_data(), out[1].bytes_data());
}

// dy, x, weight, mean, rstd
NormBackward backward_of(const Size& s, In in) {
  return {.rows = s.rows,
          .d = s.d,
          .whole = s.whole,
          .dy = in[0].bytes_data(),
          .x = in[1].bytes_data(),
          .w = in[2].bytes_data(),
          .mean = in[3].bytes_data(),
          .rstd = in[4].bytes_data()};
}
void norm_gradient_sums(const Context& c, In in, Out out) {
  NormBackward n = backward_of(Size(c, in, 1, {3, 4}), in);
  n.sum = out[0].bytes_data(), n.along = out[1].bytes_data();
  norm_backward(c.stream(), in[1].dtype(), n);
}
void layer_norm_backward(const Context& c, In in, Out out) {
  NormBackward n = backward_of(Size(c, in, 1, {3, 4, 5, 6}), in);
  n.sums = in[5].bytes_data(), n.alongs = in[6].bytes_data();
  n.dx = out[0].bytes_data();
  Tensor room;
  if (out.size() > 1) {
    n.dw = out[1].bytes_data(), n.db = out[2].bytes_data();
    room = partials(c, in[1].dtype(), n);
    n.partial = room.bytes_data();
  }
  norm_backward(c.stream(), in[1].dtype(), n);
}

}  // namespace

extern const KernelTable norm_kernels;
const KernelTable norm_kernels = {{&ops::rms_norm_op, rms_norm},
                                  {&ops::add_rms_norm_op, add_rms_norm},
                                  {&ops::rms_norm_backward_op, rms_norm_backward},
                                  {&ops::add_rms_norm_backward_op, rms_norm_backward},
                                  {&ops::layer_norm_op, layer_norm},
                                  {&ops::normalize_op, normalize},
                                  {&ops::norm_statistics_op, norm_statistics},
                                  {&ops::norm_gradient_sums_op, norm_gradient_sums},
                                  {&ops::layer_norm_backward_op, layer_norm_backward}};

}  // namespace dtensor::cuda
