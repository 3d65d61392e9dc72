#include "ops/linalg/matmul.h"

#include <numeric>

#include "ops/cards.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/rows.h"
#include "ops/cuda/matmul.h"
#include "ops/family/dims.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// C [M, N] = A B, or C + A B where the context says so: one product, its rows or columns split over the threads.
template <class T>
void product(const Context& c, cpu::Form form, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B,
             int64_t ldb, T* C, int64_t ldc, int64_t l) {
  constexpr int64_t rows = 48, columns = 64;  // multiples of the kernel's tile
  if (M >= N || N < 2 * columns) {
    c.pool.parallel_for(M, rows, [&](int64_t b, int64_t e, int worker) {
      const T* a = A + (form == cpu::Form::TN ? b : b * lda);
      cpu::gemm(form, e - b, N, K, a, lda, B, ldb, C + b * ldc, ldc, c.accumulate, l, c.scratch(worker));
    });
  } else {
    c.pool.parallel_for(N, columns, [&](int64_t b, int64_t e, int worker) {
      const T* p = B + (form == cpu::Form::NT ? b * ldb : b);
      cpu::gemm(form, M, e - b, K, A, lda, p, ldb, C + b, ldc, c.accumulate, l, c.scratch(worker));
    });
  }
}

cpu::Form form_of(bool a_transposed, bool b_transposed) {
  return a_transposed ? cpu::Form::TN : b_transposed ? cpu::Form::NT : cpu::Form::NN;
}

}  // namespace

Tensor flattened(const Tensor& x, const Shape& shape) {
  Tensor v = x.view(shape);
  return v.defined() ? v : x.contiguous().view(shape);
}

Matrix matrix(const Tensor& t) {
  int64_t rows = t.size(t.dims() - 2), columns = t.shape().back();
  int64_t sr = t.strides()[t.dims() - 2], sc = t.strides().back();
  if ((sc == 1 || columns == 1) && (sr >= columns || rows == 1)) return {t, false, std::max(sr, columns)};
  if ((sr == 1 || rows == 1) && (sc >= rows || columns == 1)) return {t, true, std::max(sc, rows)};
  Tensor copy = t.clone();
  return {copy, false, columns};
}

void multiply(const Context& c, const Tensor& x, const Tensor& z, const Tensor& y, int64_t leaves) {
  if (y.device() == Device::cuda) return cuda::multiply(c, x, z, y);
  Matrix a = matrix(x), b = matrix(z);
  if (a.transposed && b.transposed) a = {a.t.clone(), false, a.t.shape().back()};
  int64_t M = y.size(y.dims() - 2), N = y.shape().back(), K = a.t.shape().back();
  cpu::Form form = form_of(a.transposed, b.transposed);
  int64_t batch = rows_of(y, 2);
  std::array<Shape, 2> strides{broadcast_strides(a.t, y.shape()), broadcast_strides(b.t, y.shape())};
  for (Shape& s : strides) s.erase(s.dims() - 1);  // for_rows leaves out the last dimension; the row is the batch entry
  Shape batches = y.shape();
  batches.erase(batches.dims() - 1);
  for_floating(c, y.dtype(), [&]<class T>() {
    const T *pa = a.t.data<T>(), *pb = b.t.data<T>();
    T* py = y.data<T>();
    if (batch == 1) return product(c, form, M, N, K, pa, a.ld, pb, b.ld, py, N, leaves);
    c.pool.parallel_for(batch, 1, [&](int64_t begin, int64_t end, int worker) {
      for_rows<2>(batches, strides, begin, end, [&](int64_t i, const auto& at) {
        cpu::gemm(form, M, N, K, pa + at[0], a.ld, pb + at[1], b.ld, py + i * M * N, N, c.accumulate, leaves,
                  c.scratch(worker));
      });
    });
  });
}

DType product_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  check(is_floating(t), "[{}] multiplies floating types, not {}{}; use cast()", op, name(t), in[0]->shape);
  return t;
}

namespace {

DType weight_gradient_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a,
                           int output) {
  DType t = product_types(op, in, a, output), to = a.as<Product>().dtype.value_or(t);
  check(to == t || (t == DType::bf16 && to == DType::f32), "[{}] dtype={} of {} factors: it is theirs, or f32 of bf16",
        op, name(to), name(t));
  return to;
}

void matmul_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor y = out[0], x = in[0];
  // Without leading dimensions in b, those of a are more rows.
  if (in[1].dims() == 2 && x.dims() > 2) {
    x = flattened(x, {rows_of(x), x.shape().back()});
    y = y.view({rows_of(y), y.shape().back()});
  }
  multiply(c, x, in[1], y, c.leaves("k"));
}

// x W^T + bias -> y
template <class T>
void linear_rows(const Context& c, std::span<const Tensor> in, T* y) {
  const Tensor &x = in[0], &w = in[1], &bias = in[2];
  int64_t M = rows_of(x), N = w.size(0), K = w.size(1);
  product(c, cpu::Form::NT, M, N, K, x.data<T>(), K, w.data<T>(), K, y, N, c.leaves("k"));
  if (!bias.defined()) return;
  const T* b = bias.data<T>();
  c.pool.parallel_for(M, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(N, 1)),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t i = begin; i < end; ++i)
                          for (int64_t j = 0; j < N; ++j) y[i * N + j] += b[j];
                      });
}

void linear_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() { linear_rows(c, in, out[0].data<T>()); });
}

// x, weight, residual, bias
void linear_add_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor list[] = {in[0], in[1], in[3]};
  check_rows(c, in, {{0, 1}, {2, 1}});
  for_floating(c, out[0].dtype(), [&]<class T>() {
    T* y = out[0].data<T>();
    const T* residual = in[2].data<T>();
    linear_rows(c, list, y);
    c.pool.parallel_for(out[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) y[i] += residual[i];
    });
  });
}

void linear_gelu_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    T *y = out[0].data<T>(), *before = out[1].data<T>();
    linear_rows(c, in, before);
    c.pool.parallel_for(out[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      cpu::gelu_tanh(end - begin, before + begin, y + begin);
    });
  });
}

void linear_weight_gradient_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor &dy = in[0], &x = in[1];
  int64_t N = dy.shape().back(), K = x.shape().back();
  check_rows(c, in, {{0, 1}, {1, 1}});
  for_floating(c, x.dtype(), [&]<class T>() {
    product(c, cpu::Form::TN, N, K, rows_of(x), dy.data<T>(), N, x.data<T>(), K, out[0].data<T>(), K,
            c.leaves_of_dots());
  });
}

// Of input 1 of `g`, a matrix [n, k]: added to what it has so far, in the type that it is kept in.
void set_weight_gradient(Gradient& g, const DistributedTensor& dy, const DistributedTensor& x) {
  bool wider = x.dtype() == DType::bf16 && g.dtype(1) == DType::f32;
  bool added = false;
  DistributedTensor d = call(linear_weight_gradient_op, {&dy, &x}, Product{wider ? DType::f32 : x.dtype()},
                             {g.wanted(1), g.sum(1), &added});
  if (!added) g.set(1, std::move(d));
}

// Of input i of `g`: added to what it has so far, so that the gradient of what several products read is one sum.
void set_product(Gradient& g, int i, const DistributedTensor& a, const DistributedTensor& b) {
  bool added = false;
  DistributedTensor d = call(matmul_op, {&a, &b}, {}, {g.wanted(i), g.sum(i), &added});
  if (!added) g.set(i, sum_to(d, g.input_spec(i).shape));
}

void matmul_gradient(Gradient& g) {
  const DistributedTensor &a = g.input(0), &b = g.input(1), &dy = g.of_output();
  if (g.needs(0)) set_product(g, 0, dy, transpose(b, -2, -1));
  if (!g.needs(1)) return;
  if (b.dims() == 2)
    set_weight_gradient(g, a, dy);
  else
    set_product(g, 1, transpose(a, -2, -1), dy);
}

// Of x W^T + bias, input `of_bias`, where its gradient is dy.
void linear_gradients(Gradient& g, const DistributedTensor& dy, int of_bias = 2) {
  const DistributedTensor &x = g.input(0), &w = g.input(1);
  if (g.needs(0) && dy.dims() > 1) {
    set_product(g, 0, dy, w);
  } else if (g.needs(0)) {  // one row
    DistributedTensor row = reshape(dy, {1, dy.size(0)});
    g.set(0, reshape(matmul(row, w), x.shape()));
  }
  if (g.needs(1)) set_weight_gradient(g, dy, x);
  if (g.needs(of_bias)) {
    Dims leading = Dims::filled(dy.dims() - 1, 0);
    std::iota(leading.begin(), leading.end(), 0);
    g.set(of_bias, leading.empty() ? dy : sum(dy, leading));
  }
}
void linear_gradient(Gradient& g) { linear_gradients(g, g.of_output()); }
void linear_add_gradient(Gradient& g) {
  if (g.needs(2)) g.set(2, g.of_output());
  linear_gradients(g, g.of_output(), 3);
}
void linear_gelu_gradient(Gradient& g) {
  linear_gradients(g, call(gelu_backward_op, {&g.of_output(), &g.output(1)}, Gelu{"tanh"}));
}

void linear_weight_gradient_gradient(Gradient& g) {
  const DistributedTensor &dy = g.input(0), &x = g.input(1), dw = cast(g.of_output(), x.dtype());
  if (g.needs(0)) g.set(0, linear(x, dw));
  if (g.needs(1)) g.set(1, matmul(dy, dw));
}

}  // namespace

const Op matmul_op = {.name = "matmul",
                      .functions = {function<matmul>("matmul(x, y)", "the product of matrices"),
                                    function<bmm>("bmm(x, y)", "the products of two batches of matrices")},
                      .rule = "...mk,...kn->...mn",
                      .passes = {linear_in({0}), linear_in({1})},
                      .types = product_types,
                      .strided = true,
                      .accumulates = true,
                      .f32_sums = true,
                      .cpu = matmul_kernel,
                      .gradient = matmul_gradient,
                      .keeps = {.inputs = {0, 1}},
                      .sample = {{{{5, 7}, {7, 3}}},
                                 {{{2, 5, 7}, {2, 7, 3}}},
                                 {{{2, 5, 7}, {7, 3}}},
                                 {{{5, 7}, {2, 7, 3}}},
                                 {{{1, 1}, {1, 1}}},
                                 {{{4, 0}, {0, 3}}}}};
const Op linear_op = {
    .name = "linear",
    .functions = {function<linear>("linear(x, weight, bias=none)", "x times weight transposed, and the bias")},
    .rule = "...k,nk,n->...n",
    .passes = {linear_in({0, 2}), linear_in({1, 2})},
    .added = {2},
    .types = product_types,
    .optional = {2},
    .f32_sums = true,
    .cpu = linear_kernel,
    .gradient = linear_gradient,
    .keeps = {.inputs = {0, 1}},
    .sample = {{{{5, 7}, {3, 7}, {3}}}, {{{2, 5, 7}, {3, 7}, absent}}, {{{7}, {3, 7}, {3}}}, {{{0, 4}, {6, 4}, {6}}}}};
const Op linear_add_op = {
    .name = "linear_add",
    .rule = "...k,nk,...n,n->...n",
    .passes = {linear_in({0, 2, 3}), linear_in({1, 2, 3})},
    .added = {2, 3},
    .types = product_types,
    .optional = {3},
    .f32_sums = true,
    .cpu = linear_add_kernel,
    .gradient = linear_add_gradient,
    .keeps = {.inputs = {0, 1}},
    .sample = {
        {{{5, 7}, {3, 7}, {5, 3}, {3}}}, {{{2, 5, 7}, {3, 7}, {2, 5, 3}, absent}}, {{{0, 4}, {6, 4}, {0, 6}, {6}}}}};
// Sharded k would be summed before gelu, which is not linear.
const Op linear_gelu_op = {
    .name = "linear_gelu",
    .functions = {function<linear_gelu>("linear_gelu(x, weight, bias=none)", "gelu, in its tanh form, of linear")},
    .rule = "...[k],n[k],n->...n,...n",
    .types = product_types,
    .optional = {2},
    .cpu = linear_gelu_kernel,
    .gradient = linear_gelu_gradient,
    .keeps = {.inputs = {0, 1}, .outputs = {1}},
    .sample = {{{{5, 7}, {3, 7}, {3}}}, {{{2, 5, 7}, {3, 7}, absent}}, {{{7}, {3, 7}, {3}}}, {{{0, 4}, {6, 4}, {6}}}}};
const Op linear_weight_gradient_op = {
    .name = "linear_weight_gradient",
    .rule = "...n,...k->nk",
    .passes = {linear_in({0}), linear_in({1})},
    .types = weight_gradient_type,
    .accumulates = true,
    .f32_sums = true,
    .cpu = linear_weight_gradient_kernel,
    .gradient = linear_weight_gradient_gradient,
    .keeps = {.inputs = {0, 1}},
    .sample = {{{{5, 3}, {5, 7}}, Product{}}, {{{2, 5, 3}, {2, 5, 4}}, Product{}}, {{{0, 3}, {0, 4}}, Product{}}}};

namespace {
constexpr const Op* matmul_ops[] = {&matmul_op, &linear_op, &linear_add_op, &linear_gelu_op,
                                    &linear_weight_gradient_op};
}  // namespace
const Cards matmul_cards = matmul_ops;

DistributedTensor matmul(const DistributedTensor& a, const DistributedTensor& b) {
  check_defined("matmul", a);
  check_defined("matmul", b, 1);
  check(a.dims() > 0 && b.dims() > 0, "[matmul] both operands need a dimension: {} and {}; use mul() for a number", a,
        b);
  if (a.dims() > 1 && b.dims() > 1) {
    check(a.size(-1) == b.size(-2), "[matmul] inner sizes {} and {} differ: {} and {}", a.size(-1), b.size(-2), a, b);
    return call(matmul_op, {&a, &b});
  }
  // A vector is a matrix of one row on the left, of one column on the right, and its dimension goes again.
  DistributedTensor y =
      matmul(a.dims() == 1 ? view(a, {1, a.size(0)}) : a, b.dims() == 1 ? view(b, {b.size(0), 1}) : b);
  Shape shape = y.shape();
  if (b.dims() == 1) shape.erase(shape.dims() - 1);
  if (a.dims() == 1) shape.erase(shape.dims() - 1 - (b.dims() > 1));
  return view(y, shape);
}
DistributedTensor bmm(const DistributedTensor& a, const DistributedTensor& b) {
  check_defined("bmm", a);
  check_defined("bmm", b, 1);
  check(a.dims() == 3 && b.dims() == 3 && a.size(0) == b.size(0) && a.size(2) == b.size(1),
        "[bmm] operands are [b,m,k] and [b,k,n], not {} and {}; matmul() broadcasts", a, b);
  return matmul(a, b);
}
DistributedTensor linear(const DistributedTensor& x, const DistributedTensor& weight, const DistributedTensor& bias) {
  return call(linear_op, {&x, &weight, &bias});
}
DistributedTensor linear_add(const DistributedTensor& x, const DistributedTensor& weight,
                             const DistributedTensor& residual, const DistributedTensor& bias) {
  return call(linear_add_op, {&x, &weight, &residual, &bias});
}
DistributedTensor linear_gelu(const DistributedTensor& x, const DistributedTensor& weight,
                              const DistributedTensor& bias) {
  return call(linear_gelu_op, {&x, &weight, &bias});
}
DistributedTensor linear_weight_gradient(const DistributedTensor& dy, const DistributedTensor& x,
                                         std::optional<DType> dtype) {
  return call(linear_weight_gradient_op, {&dy, &x}, Product{dtype});
}

}  // namespace dtensor::ops
