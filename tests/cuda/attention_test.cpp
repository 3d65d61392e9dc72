#include "ops/layer/attention.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "dtensor/cuda/allocator.h"
#include "ops/all.h"
#include "ops/cuda/attention_backend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/tuning.h"
#include "tests/autograd.h"
#include "tests/folder.h"

using namespace dtensor;
using Catch::Contains;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

enum class Mask { none, visible, bias };

struct Case {
  DType dtype;
  int64_t batch, heads, kv_heads, queries, keys, head_dim;
  bool causal = false;
  int64_t query_begin = 0;
  Mask mask = Mask::none;
  Shape mask_shape = {};
  double dropout_p = 0;
  bool packed = false;  // q, k and v are parts of one tensor
  int positions = 0;    // 1: of queries, the same for all; 2: of both, by batch entry
  int lengths = 0;      // of keys: 1: the same for all; 2: by batch entry
  bool rows = false;    // given, for dropout
  int64_t window = 0;
  int documents = 0;      // 1: the same for all; 2: by batch entry; with max_documents in runs, and positions in them
  int64_t all_heads = 0;  // not 0: every rank has all key heads, and this one the query heads from 1 on
  int64_t max_documents = 0;
  int wrong = 0;  // what breaks max_documents in the row of batch entry 1: wrongs has the words
};
const char* const wrongs[] = {"nothing",
                              "a document too many",
                              "a document that comes back",
                              "a document that comes back after padding",
                              "a key of another document",
                              "a query in padding that is no key",
                              "a position that does not follow",
                              "a key at another position"};

std::string to_string(const Case& c) {
  return fmt::format(
      "{}: batch {}, heads {}/{}, queries {} from {}, keys {}, head_dim {}, causal {}, mask {}{}, dropout {}, "
      "positions {}, lengths {}, rows {}, window {}, documents {} ({} at most), of {} heads, wrong: {}",
      name(c.dtype), c.batch, c.heads, c.kv_heads, c.queries, c.query_begin, c.keys, c.head_dim, c.causal, int(c.mask),
      c.mask == Mask::none ? "" : to_string(c.mask_shape), c.dropout_p, c.positions, c.lengths, c.rows, c.window,
      c.documents, c.max_documents, c.all_heads, wrongs[c.wrong]);
}

// value(i), rounded to the type, in a type that the CPU computes in.
template <class F>
Tensor make(DType dtype, const Shape& shape, F value) {
  Tensor t(std::make_shared<Allocator>(), dtype == DType::f64 ? DType::f64 : DType::f32, shape);
  for (int64_t i = 0; i < t.numel(); ++i) {
    double x = value(i);
    if (dtype == DType::f64)
      t.data<double>()[i] = x;
    else
      t.data<float>()[i] = dtype == DType::bf16 ? float(BFloat16(float(x))) : float(x);
  }
  return t;
}
Tensor wave(DType dtype, const Shape& shape, double frequency) {
  return make(dtype, shape, [&](int64_t i) { return std::sin(frequency * double(i + 1)); });
}
Tensor as_bf16(const Tensor& t) {
  Tensor y(std::make_shared<Allocator>(), DType::bf16, t.shape());
  for (int64_t i = 0; i < t.numel(); ++i) y.data<BFloat16>()[i] = BFloat16(float(element(t.contiguous(), i)));
  return y;
}

// Calls a kernel of one device on tensors in host memory.
class Runner {
 public:
  Runner(const Case& c, Device device) : c_(c), device_(device) {
    if (device == Device::cuda) allocator_ = cuda::make_allocator(0);
  }

  std::vector<Tensor> operator()(const Op& op, const std::vector<Tensor>& in, const std::vector<Shape>& shapes,
                                 const std::vector<DType>& types) {
    std::vector<Tensor> inputs, outputs;
    for (const Tensor& t : in) inputs.push_back(t.defined() ? there(t) : t);
    for (size_t i = 0; i < shapes.size(); ++i) {
      outputs.emplace_back(allocator_, type(types[i]), shapes[i]);
      fill(outputs.back(), std::nan(""));  // every element is written
    }
    // As of a rank that has a part of batch, heads and queries.
    Context::FactorRange factors[] = {
        {'b', {1, 1 + c_.batch}, c_.batch + 2},
        {'g', {c_.kv_heads, 2 * c_.kv_heads}, 3 * c_.kv_heads},
        {'h', {1, 1 + c_.heads}, c_.all_heads},
        {'s', {c_.query_begin, c_.query_begin + c_.queries}, c_.query_begin + c_.queries + 3}};
    Attributes attributes = ops::AttentionBackward{{.causal = c_.causal,
                                                    .window = c_.window,
                                                    .whole_kv = c_.all_heads != 0,
                                                    .scale = 0.3,
                                                    .dropout_p = c_.dropout_p,
                                                    .key = 77,
                                                    .max_documents = c_.max_documents},
                                                   c_.mask == Mask::bias};
    ThreadPool pool(1);
    std::vector<cpu::Scratch> scratch(1);
    cuda::Workspace workspace(allocator_);
    Kernel kernel = device_ == Device::cuda ? cuda::find_kernel(op) : op.cpu;
    kernel(Context(op.name, attributes, factors, pool, scratch, allocator_, &workspace), inputs, outputs);
    for (Tensor& t : outputs) t = t.cpu();
    return outputs;
  }

 private:
  bool is_bf16() const { return c_.dtype == DType::bf16 && device_ == Device::cuda; }
  // The CPU has float32 in place of bf16.
  DType type(DType t) const { return t == DType::bf16 && !is_bf16() ? DType::f32 : t; }
  Tensor there(const Tensor& t) const {
    if (device_ == Device::cpu) return t;
    // Views are views there, too.
    if (!t.is_contiguous()) {
      Tensor whole(allocator_, is_bf16() ? DType::bf16 : t.dtype(),
                   {t.size(0), t.size(1), t.strides()[1] / t.size(3), t.size(3)});
      fill(whole, std::nan(""));
      Tensor part = whole.narrow(2, whole.size(2) - t.size(2), t.size(2));
      copy((is_bf16() ? as_bf16(t) : t.contiguous()).to(allocator_), part);
      return part;
    }
    bool is_lse = t.dims() == 3;
    return (is_bf16() && t.dtype() == DType::f32 && !is_lse ? as_bf16(t) : t).to(allocator_);
  }

  const Case& c_;
  Device device_;
  std::shared_ptr<Allocator> allocator_ = std::make_shared<Allocator>();
};

// Documents in runs, of row b: one token; one token; some, and padding; the rest. Or one that fills the row; or padding
// alone; or three, the last of them at the end of the row.
std::vector<int64_t> runs(int64_t b, int64_t n) {
  std::vector<int64_t> list(size_t(n), -1);
  auto fill = [&](int64_t begin, int64_t end, int64_t number) {
    for (int64_t i = std::min(begin, n); i < std::min(end, n); ++i) list[size_t(i)] = number;
  };
  if (b % 4 == 0) fill(0, 1, 0), fill(1, 2, 1), fill(2, n / 3, 2), fill(n / 3 + 3, n, 7);
  if (b % 4 == 1) fill(0, n, 0);
  if (b % 4 == 3) fill(2, n / 2, 1), fill(n / 2, n - 1, 2), fill(n - 1, n, 3);
  return list;
}

// q_documents, k_documents, q_positions and k_positions of a case with max_documents.
std::array<Tensor, 4> documents_in_runs(const Case& c) {
  std::array<std::vector<int64_t>, 4> lists;
  const int64_t n = c.queries, rows = c.documents == 2 ? c.batch : 1;
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = 0; i < n; ++i) {
      std::vector<int64_t> documents = runs(b, n);
      const bool goes_on = i > 0 && documents[size_t(i)] == documents[size_t(i - 1)];
      for (int list : {0, 1}) lists[size_t(list)].push_back(documents[size_t(i)]);
      for (int list : {2, 3}) lists[size_t(list)].push_back(goes_on ? lists[size_t(list)].back() + 1 : 5 * b);
    }
  auto put = [&](std::initializer_list<int> which, int64_t begin, int64_t end, int64_t value) {
    for (int list : which) std::fill(lists[size_t(list)].begin() + begin, lists[size_t(list)].begin() + end, value);
  };
  for (int64_t i = 0; c.wrong == 1 && i < n; ++i)
    put({0, 1}, n + i, n + i + 1, i / 5), put({2, 3}, n + i, n + i + 1, i % 5);
  if (c.wrong == 2 || c.wrong == 3) {  // 0 ... 3 or -1 ... 0 ...
    put({0, 1}, n + 9, n + 20, c.wrong == 2 ? 3 : -1);
    for (int64_t i = 9; i < n; ++i) put({2, 3}, n + i, n + i + 1, i < 20 ? i - 9 : i - 20);
  }
  if (c.wrong == 4) put({1}, 2 * n - 1, 2 * n, 1);
  if (c.wrong == 5) put({0}, 2 * n - 1, 2 * n, -1);
  if (c.wrong == 6) put({2, 3}, 2 * n - 1, 2 * n, 3);
  if (c.wrong == 7) put({3}, n, n + 1, 4);
  Shape shape = c.documents == 2 ? Shape{c.batch, n} : Shape{n};
  std::array<Tensor, 4> tensors;
  for (size_t i = 0; i < 4; ++i)
    if (i < 2 || c.positions) tensors[i] = Tensor::of<int64_t>(shape, lists[i]);
  return tensors;
}

std::vector<Tensor> inputs_of(const Case& c) {
  int64_t all = c.heads + 2 * c.kv_heads;
  Tensor q = wave(c.dtype, {c.batch, c.queries, c.heads, c.head_dim}, 0.37),
         k = wave(c.dtype, {c.batch, c.keys, c.kv_heads, c.head_dim}, 0.73),
         v = wave(c.dtype, {c.batch, c.keys, c.kv_heads, c.head_dim}, 1.19), mask;
  if (c.packed) {
    Tensor qkv = wave(c.dtype, {c.batch, c.keys, all, c.head_dim}, 0.61);
    q = qkv.narrow(2, 0, c.heads).narrow(1, 0, c.queries);
    k = qkv.narrow(2, c.heads, c.kv_heads), v = qkv.narrow(2, c.heads + c.kv_heads, c.kv_heads);
  }
  if (c.mask == Mask::bias)
    mask = make(c.dtype, c.mask_shape, [&](int64_t i) {
      return i % 7 == 3 || i / c.mask_shape.back() % 5 == 2 ? -infinity : std::cos(0.9 * double(i));
    });
  if (c.mask == Mask::visible) {
    mask = Tensor(std::make_shared<Allocator>(), DType::boolean, c.mask_shape);
    for (int64_t i = 0; i < mask.numel(); ++i)
      mask.data<bool>()[i] = i % 3 != 1 && i / c.mask_shape.back() % 5 != 2;  // some rows see nothing
  }
  auto indices = [](Shape shape, int64_t factor, int64_t below) {
    std::vector<int64_t> list;
    for (int64_t i = 0; i < numel(shape); ++i) list.push_back((i * factor + 3) % below);
    return Tensor::of<int64_t>(shape, list);
  };
  auto documents = [&](int64_t n) {  // of some elements each, with padding between
    Shape shape = c.documents == 2 ? Shape{c.batch, n} : Shape{n};
    std::vector<int64_t> list;
    for (int64_t i = 0; i < numel(shape); ++i) list.push_back(i % n % 11 == 7 ? -1 : i % n / 9 + i / n);
    return Tensor::of<int64_t>(shape, list);
  };
  Tensor step, rows, queries, keys, lengths, q_documents, k_documents;
  if (c.documents) q_documents = documents(c.queries), k_documents = documents(c.keys);
  if (c.dropout_p > 0) step = Tensor::of<int64_t>({}, {5});
  if (c.rows) rows = indices({c.batch}, 3, 5);
  if (c.max_documents) {
    auto [of_queries, of_keys, at_queries, at_keys] = documents_in_runs(c);
    return {q, k, v, mask, step, rows, at_queries, at_keys, lengths, of_queries, of_keys};
  }
  if (c.positions) queries = indices(c.positions == 2 ? Shape{c.batch, c.queries} : Shape{c.queries}, 7, c.keys);
  if (c.positions == 2) keys = indices({c.batch, c.keys}, 5, c.keys);
  if (c.lengths) lengths = indices(c.lengths == 2 ? Shape{c.batch} : Shape{}, c.keys / 2, c.keys + 1);
  if (c.lengths == 2) lengths.data<int64_t>()[c.batch - 1] = 0;
  for (int64_t b = 0; c.lengths && b < c.batch; ++b)  // what takes no part is not read
    for (const Tensor& t : {k, v}) {
      int64_t length = lengths.data<int64_t>()[c.lengths == 2 ? b : 0];
      fill(t.narrow(0, b, 1).narrow(1, length, c.keys - length), NAN);
    }
  return {q, k, v, mask, step, rows, queries, keys, lengths, q_documents, k_documents};
}

struct Results {
  std::vector<Tensor> forward, backward;
};
// The backward pass takes the results of the CPU's forward pass.
Results run(const Case& c, Device device, const std::vector<Tensor>& forward = {}) {
  std::vector<Tensor> in = inputs_of(c);
  Shape q = {c.batch, c.queries, c.heads, c.head_dim}, k = {c.batch, c.keys, c.kv_heads, c.head_dim},
        lse = {c.batch, c.heads, c.queries}, scores = {c.batch, c.heads, c.queries, c.keys};
  Runner runner(c, device);
  Results r;
  r.forward = runner(ops::attention_op, in, {q, lse}, {c.dtype, c.dtype == DType::f64 ? DType::f64 : DType::f32});
  const std::vector<Tensor>& given = forward.empty() ? r.forward : forward;
  std::vector<Shape> shapes{q, k, k};
  if (c.mask == Mask::bias) shapes.push_back(scores);
  r.backward = runner(ops::attention_backward_op,
                      {wave(c.dtype, q, 0.83), in[0], in[1], in[2], given[0], given[1], in[3], in[4], in[5], in[6],
                       in[7], in[8], in[9], in[10]},
                      shapes, std::vector<DType>(shapes.size(), c.dtype));
  return r;
}

void check_near(const Tensor& got, const Tensor& expected, double tolerance) {
  REQUIRE(got.shape() == expected.shape());
  double scale = 0.1, worst = 0;
  for (int64_t i = 0; i < got.numel(); ++i)
    if (double e = element(expected, i); std::isfinite(e)) scale = std::max(scale, std::abs(e));
  for (int64_t i = 0; i < got.numel(); ++i) {
    double x = element(got, i), e = element(expected, i);
    worst = std::max(worst, x == e ? 0 : std::isnan(x) ? infinity : std::abs(x - e) / scale);
  }
  CHECK(worst < tolerance);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.bytes_data(), b.bytes_data(), size_t(a.bytes())) == 0;
}

constexpr DType f32 = DType::f32, f64 = DType::f64, bf16 = DType::bf16;

const Case cases[] = {
    {f32, 1, 1, 1, 1, 1, 1},
    {f32, 2, 4, 2, 5, 7, 3},
    {f64, 2, 4, 2, 5, 7, 3},
    {f32, 0, 2, 1, 3, 3, 4},
    {f32, 1, 0, 0, 3, 3, 4},
    {f32, 1, 2, 1, 0, 3, 4},
    {f32, 1, 2, 1, 3, 0, 4},
    {f32, 1, 2, 1, 3, 4, 0},
    {f32, 1, 2, 1, 1, 200, 8},
    {f32, 2, 2, 2, 70, 70, 16, true},
    {bf16, 2, 6, 3, 70, 70, 16, true},
    {f64, 1, 2, 1, 70, 70, 7, true},
    {f32, 1, 3, 1, 65, 130, 40, true, 65},  // queries of the second of two ranks
    {bf16, 1, 3, 1, 65, 130, 40, true, 65},
    {f32, 1, 2, 1, 70, 20, 5, true, 30},  // queries beyond the keys
    {f32, 1, 2, 1, 20, 90, 5, true},      // keys beyond the queries
    {f32, 1, 2, 2, 64, 64, 64},
    {f32, 1, 1, 1, 66, 67, 130, true},
    {bf16, 1, 2, 1, 33, 40, 256, true, 7},
    {f64, 1, 1, 1, 20, 35, 256},
    {f32, 2, 4, 2, 30, 70, 8, false, 0, Mask::visible, {2, 4, 30, 70}},
    {f32, 2, 4, 2, 30, 70, 8, false, 0, Mask::visible, {1, 1, 30, 70}},
    {bf16, 2, 4, 2, 30, 70, 8, false, 0, Mask::visible, {2, 1, 1, 70}},
    {f32, 2, 4, 2, 30, 70, 8, false, 0, Mask::bias, {2, 4, 30, 70}},
    {f64, 2, 4, 2, 30, 40, 8, false, 0, Mask::bias, {1, 4, 30, 1}},
    {bf16, 2, 4, 2, 30, 70, 8, false, 0, Mask::bias, {1, 4, 1, 70}},
    {f32, 2, 4, 2, 30, 70, 8, false, 3, Mask::none, {}, 0.25},
    {f64, 2, 4, 2, 30, 40, 8, true, 3, Mask::none, {}, 0.5},
    {bf16, 2, 4, 2, 30, 40, 8, false, 3, Mask::bias, {2, 1, 30, 40}, 0.25},
    {f32, 1, 2, 1, 5, 6, 4, false, 0, Mask::none, {}, 1},
    {f32, 2, 4, 2, 40, 40, 12, true, 0, Mask::none, {}, 0, true},
    {bf16, 2, 4, 2, 40, 40, 12, true, 0, Mask::none, {}, 0, true},
    {f32, 2, 4, 2, 70, 90, 8, true, 5, Mask::none, {}, 0, false, 1},
    {f64, 2, 4, 2, 70, 90, 8, true, 5, Mask::none, {}, 0, false, 2},
    {bf16, 2, 4, 2, 70, 90, 8, true, 0, Mask::none, {}, 0, false, 2, 2},
    {f32, 3, 4, 2, 5, 150, 8, false, 0, Mask::none, {}, 0, false, 0, 2},
    {f32, 2, 4, 2, 1, 150, 8, true, 99, Mask::none, {}, 0, false, 0, 1},
    {f64, 2, 4, 2, 30, 70, 8, false, 0, Mask::bias, {2, 4, 30, 70}, 0.25, false, 0, 2, true},
    {f32, 2, 4, 2, 30, 70, 8, true, 3, Mask::none, {}, 0.5, false, 2, 2, true},
    {f32, 2, 4, 2, 30, 70, 8, false, 3, Mask::none, {}, 0.5, false, 1, 0, true},
    {f32, 2, 4, 2, 30, 70, 130, true, 3, Mask::none, {}, 0, false, 2, 2},
    {f32, 2, 4, 2, 200, 230, 8, true, 20, Mask::none, {}, 0, false, 0, 0, false, 33},  // windows
    {bf16, 1, 2, 2, 150, 150, 16, true, 0, Mask::none, {}, 0, false, 0, 0, false, 1},
    {f64, 2, 4, 2, 30, 70, 8, true, 3, Mask::none, {}, 0.5, false, 2, 2, true, 10},
    {f32, 2, 4, 2, 70, 90, 8, true, 5, Mask::none, {}, 0, false, 0, 0, false, 20, 1},
    {f32, 2, 4, 2, 70, 90, 8, false, 5, Mask::bias, {2, 4, 70, 90}, 0, false, 0, 0, false, 0, 2},
    {bf16, 2, 4, 2, 70, 90, 8, false, 5, Mask::none, {}, 0, false, 0, 0, false, 0, 2},
    {bf16, 4, 4, 2, 70, 70, 8, false, 0, Mask::none, {}, 0, false, 0, 2},  // which cuDNN takes, with lengths
    {bf16, 4, 4, 2, 70, 70, 8, true, 0, Mask::none, {}, 0, false, 0, 2},
    {bf16, 2, 4, 2, 50, 60, 64, true, 0, Mask::none, {}, 0, false, 0, 1},
    {bf16, 2, 4, 2, 150, 150, 16, true, 0, Mask::none, {}, 0, false, 0, 0, false, 20},  // and windows
    {bf16, 4, 4, 2, 70, 70, 8, true, 0, Mask::none, {}, 0, false, 0, 2, false, 20},
    {bf16, 2, 4, 2, 60, 100, 16, true, 40, Mask::none, {}, 0, false, 0, 0, false, 33},
    // Documents of which cuDNN knows how many there are.
    {bf16, 4, 4, 2, 70, 70, 16, true, 0, Mask::none, {}, 0, false, 0, 0, false, 0, 2, 0, 4},
    {bf16, 4, 4, 2, 70, 70, 16, true, 0, Mask::none, {}, 0, false, 2, 0, false, 0, 2, 0, 7},
    {bf16, 3, 4, 4, 33, 33, 32, false, 0, Mask::none, {}, 0, false, 0, 0, false, 0, 2, 0, 4},
    {bf16, 2, 6, 2, 300, 300, 16, true, 0, Mask::none, {}, 0, true, 1, 0, false, 20, 1, 0, 5},
    {bf16, 1, 2, 1, 70, 70, 16, true, 0, Mask::none, {}, 0, true, 0, 0, false, 0, 2, 0, 100},
    {bf16, 4, 2, 2, 70, 70, 8, true, 0, Mask::none, {}, 0, false, 0, 0, false, 0, 2, 0, 4},  // own, backward
    {f32, 4, 2, 2, 70, 70, 16, true, 0, Mask::none, {}, 0, false, 2, 0, false, 0, 2, 0, 4},  // own
    {f32, 2, 2, 2, 20, 30, 8, true, 5, Mask::none, {}, 0, false, 0, 0, false, 0, 0, 8},      // one key head read
    {f32, 2, 4, 3, 20, 30, 8, true, 5, Mask::none, {}, 0, false, 0, 0, false, 0, 0, 6},  // 1, 2 and 1 queries read each
    {f64, 2, 3, 4, 20, 30, 8, false, 5, Mask::bias, {2, 3, 20, 30}, 0.25, false, 0, 0, true, 0, 0, 8},
};

}  // namespace

TEST_CASE("cuda: attention agrees with the CPU, forward and backward") {
  for (const Case& c : cases) {
    INFO(to_string(c));
    double tolerance = c.dtype == f64 ? 1e-12 : c.dtype == f32 ? 1e-5 : 2e-2;
    Results expected = run(c, Device::cpu), got = run(c, Device::cuda, expected.forward);
    for (size_t i = 0; i < 2; ++i) {
      INFO("output " << i);
      check_near(got.forward[i], expected.forward[i], tolerance);
    }
    for (size_t i = 0; i < expected.backward.size(); ++i) {
      INFO("gradient " << i);
      check_near(got.backward[i], expected.backward[i], tolerance);
    }
  }
}

TEST_CASE("cuda: a row that breaks max_documents is NaN, where cuDNN computes, and the others are not") {
  if (!cuda::missing_cudnn(*Rank::single(Device::cuda)).empty()) return;
  for (int wrong = 1; wrong < int(std::size(wrongs)); ++wrong) {
    Case c{bf16, 3, 4, 2, 70, 70, 16, true, 0, Mask::none, {}, 0, false, 2, 0, false, 0, 2, 0, 4};
    Results expected = run(c, Device::cpu);
    c.wrong = wrong;
    INFO(to_string(c));
    Results got = run(c, Device::cuda, expected.forward);
    auto check_rows = [&](const Tensor& t, const Tensor& as) {
      auto row = [](const Tensor& whole, int64_t b) { return whole.narrow(0, b, 1).contiguous(); };
      int64_t not_nan = 0;
      for (int64_t i = 0; i < row(t, 1).numel(); ++i) not_nan += !std::isnan(element(row(t, 1), i));
      CHECK(not_nan == 0);
      for (int64_t b : {0, 2}) check_near(row(t, b), row(as, b), 2e-2);
    };
    for (size_t i = 0; i < 2; ++i) check_rows(got.forward[i], expected.forward[i]);
    for (size_t i = 0; i < 3; ++i) check_rows(got.backward[i], expected.backward[i]);
  }
}

TEST_CASE("law 6: attention on cuda gives the same bits every time") {
  for (const Case& c : {cases[9], cases[10], cases[11], cases[28]}) {
    INFO(to_string(c));
    Results a = run(c, Device::cuda), b = run(c, Device::cuda);
    for (size_t i = 0; i < 2; ++i) CHECK(same_bits(a.forward[i], b.forward[i]));
    for (size_t i = 0; i < a.backward.size(); ++i) CHECK(same_bits(a.backward[i], b.backward[i]));
  }
}

TEST_CASE("cuda: attention in bf16 keeps the logarithms of its sums in float32") {
  struct Outputs : Observer {
    std::vector<DType> types;
    void on_call(const CallEvent& e) override {
      if (e.op.name != "attention") return;
      for (const DistributedTensor& y : e.outputs) types.push_back(y.dtype());
    }
  };
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "x=1");
  Outputs outputs;
  rank->add(outputs);
  auto distribute = [&](const Tensor& t) { return DistributedTensor::distribute(t, mesh, Layout()); };
  Tensor values = wave(bf16, {1, 2, 5, 8}, 0.37);
  DistributedTensor q = distribute(as_bf16(values)), x = distribute(values);
  DistributedTensor y = ops::scaled_dot_product_attention(q, q, q, {.causal = true});
  CHECK(outputs.types == std::vector<DType>{bf16, f32});
  check_near(y.full_tensor().cpu(), ops::scaled_dot_product_attention(x, x, x, {.causal = true}).full_tensor().cpu(),
             2e-2);
  rank->remove(outputs);
}

TEST_CASE("cuda: attention of too large heads is an error") {
  CHECK_THROWS_WITH(run({f32, 1, 1, 1, 2, 2, 257}, Device::cuda),
                    Contains("[attention] heads of 257 elements: on CUDA they may have at most 256"));
}

// --- Tiles that are left out, by what queries and keys are said of.

namespace {

struct Tokens {
  std::vector<int64_t> positions, documents;  // documents: as many, or none
  int64_t size() const { return int64_t(positions.size()); }
};
struct Order {
  std::string name;
  Tokens queries, keys;
  int64_t window = 0;
};

// Of rank r of P in balanced context parallelism: chunks r and 2P - 1 - r.
Tokens balanced(int r, int ranks, int64_t chunk) {
  Tokens t;
  for (int64_t of : {r, 2 * ranks - 1 - r})
    for (int64_t i = 0; i < chunk; ++i) t.positions.push_back(of * chunk + i);
  return t;
}
// The documents of a packed row at those positions, with padding at its end.
Tokens packed(Tokens t, int64_t length) {
  for (int64_t p : t.positions) t.documents.push_back(p >= length - 40 ? -1 : p < 10 ? 0 : p < length / 2 ? 1 : 2);
  return t;
}

// The queries of each rank, and keys as the ranks' sequence, its parts, or the plain one has them.
std::vector<Order> orders(int ranks, int64_t chunk) {
  const int64_t length = 2 * ranks * chunk;
  Tokens permuted, in_order;
  for (int r = 0; r < ranks; ++r)
    for (int64_t p : balanced(r, ranks, chunk).positions) permuted.positions.push_back(p);
  for (int64_t p = 0; p < length; ++p) in_order.positions.push_back(p);
  std::vector<Order> list;
  for (int r = 0; r < ranks; ++r) {
    const Tokens queries = balanced(r, ranks, chunk);
    auto add = [&](std::string keys_are, const Tokens& keys) {
      std::string name = fmt::format("rank {} of {}, chunks of {}, keys {}", r, ranks, chunk, keys_are);
      list.push_back({name, queries, keys});
      list.push_back({name + ", window", queries, keys, 37});
      list.push_back({name + ", packed", packed(queries, length), packed(keys, length)});
    };
    add("permuted", permuted), add("in order", in_order);
    for (int other = 0; other < ranks; ++other) add(fmt::format("of rank {}", other), balanced(other, ranks, chunk));
  }
  return list;
}
std::vector<Order> operator+(std::vector<Order> a, const std::vector<Order>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Case case_of(const Order& o) {
  return {.dtype = f64,
          .batch = 1,
          .heads = 1,
          .kv_heads = 1,
          .queries = o.queries.size(),
          .keys = o.keys.size(),
          .head_dim = 4,
          .causal = true,
          .window = o.window};
}

// q, k, v and dout; forward and backward of the own kernel.
struct OrderedAttention {
  const Order& order;
  Case c = case_of(order);
  Shape of_q{1, c.queries, 1, 4}, of_k{1, c.keys, 1, 4}, of_lse{1, 1, c.queries};
  Tensor q = wave(f64, of_q, 0.37), k = wave(f64, of_k, 0.73), v = wave(f64, of_k, 1.19), dout = wave(f64, of_q, 0.83);
  Tensor mask = {};  // in place of positions and documents

  std::vector<Tensor> told() const {
    auto list = [&](const std::vector<int64_t>& of) {
      return mask.defined() || of.empty() ? Tensor() : Tensor::of<int64_t>({int64_t(of.size())}, of);
    };
    return {mask,
            {},
            {},
            list(order.queries.positions),
            list(order.keys.positions),
            {},
            list(order.queries.documents),
            list(order.keys.documents)};
  }
  std::vector<Tensor> run(const Op& op, std::vector<Tensor> in, const std::vector<Shape>& shapes) const {
    for (const Tensor& t : told()) in.push_back(t);
    return Runner(c, Device::cuda)(op, in, shapes, std::vector<DType>(shapes.size(), f64));
  }
  std::vector<Tensor> forward() const { return run(ops::attention_op, {q, k, v}, {of_q, of_lse}); }
  std::vector<Tensor> backward(const std::vector<Tensor>& of_forward) const {
    return run(ops::attention_backward_op, {dout, q, k, v, of_forward[0], of_forward[1]}, {of_q, of_k, of_k});
  }
};

bool sees(const Order& o, int64_t i, int64_t j) {
  const int64_t behind = o.queries.positions[size_t(i)] - o.keys.positions[size_t(j)];
  if (behind < 0 || (o.window && behind >= o.window)) return false;
  return o.queries.documents.empty() ||
         (o.queries.documents[size_t(i)] >= 0 && o.queries.documents[size_t(i)] == o.keys.documents[size_t(j)]);
}

}  // namespace

TEST_CASE("cuda: attention by positions and documents has the bits of that by a mask, whatever tiles are left out") {
  for (const Order& order : orders(2, 32) + orders(4, 20)) {
    INFO(order.name);
    OrderedAttention by_position{order}, by_mask{order};
    by_mask.c.causal = false, by_mask.c.window = 0;
    by_mask.mask = Tensor(std::make_shared<Allocator>(), DType::boolean, {1, 1, by_mask.c.queries, by_mask.c.keys});
    for (int64_t i = 0; i < by_mask.mask.numel(); ++i)
      by_mask.mask.data<bool>()[i] = sees(order, i / by_mask.c.keys, i % by_mask.c.keys);
    std::vector<Tensor> forward = by_position.forward(), expected = by_mask.forward();
    for (size_t t = 0; t < 2; ++t) CHECK(same_bits(forward[t], expected[t]));
    std::vector<Tensor> backward = by_position.backward(forward), gradients = by_mask.backward(forward);
    for (size_t t = 0; t < 3; ++t) CHECK(same_bits(backward[t], gradients[t]));
  }
}

// What a block reads of a tile of NaN makes its results NaN, also where weights are 0.
TEST_CASE("cuda: attention leaves out the tiles of which positions and documents tell that no query sees a key") {
  constexpr int64_t tile = 32;  // of f64
  auto tiles = [](int64_t n) { return (n + tile - 1) / tile; };
  auto rows_of = [&](const Tensor& t, int64_t i) {
    return t.narrow(1, i * tile, std::min(tile, t.size(1) - i * tile));
  };
  auto is_read = [&](const Tensor& result, int64_t i) {
    Tensor rows = rows_of(result, i).contiguous();
    for (int64_t e = 0; e < rows.numel(); ++e)
      if (std::isnan(element(rows, e))) return true;
    return false;
  };
  int64_t read = 0, seen = 0, all = 0;
  for (const Order& order : orders(2, 32) + orders(2, 20)) {
    INFO(order.name);
    const OrderedAttention clean{order};
    const std::vector<Tensor> results = clean.forward();
    const int64_t of_queries = tiles(clean.c.queries), of_keys = tiles(clean.c.keys);
    // Positions and documents of a tile, from the least to the greatest.
    auto extent = [&](const Tokens& t, int64_t i) {
      std::array<int64_t, 4> e{1 << 20, -1, 1 << 20, -1};
      for (int64_t n = i * tile; n < std::min((i + 1) * tile, t.size()); ++n) {
        const int64_t p = t.positions[size_t(n)], d = t.documents.empty() ? 0 : t.documents[size_t(n)];
        if (d >= 0) e = {std::min(e[0], p), std::max(e[1], p), std::min(e[2], d), std::max(e[3], d)};
      }
      return e;
    };
    auto sees_some = [&](int64_t query) {
      for (int64_t i = query * tile; i < std::min((query + 1) * tile, clean.c.queries); ++i)
        if (std::isfinite(element(results[1], i))) return true;
      return false;
    };
    std::vector<bool> expected, forward, of_dq, of_dk, of_dv;
    for (int64_t key = 0; key < of_keys; ++key) {
      OrderedAttention poisoned{order};
      poisoned.k = clean.k.clone(), poisoned.v = clean.v.clone();
      fill(rows_of(poisoned.k, key), NAN), fill(rows_of(poisoned.v, key), NAN);
      const std::vector<Tensor> out = poisoned.forward(), gradients = poisoned.backward(results);
      for (int64_t query = 0; query < of_queries; ++query) {
        const auto i = extent(order.queries, query), j = extent(order.keys, key);
        expected.push_back(i[1] >= j[0] && i[2] <= j[3] && j[2] <= i[3] &&
                           (order.window == 0 || i[0] - j[1] < order.window));
        // Queries that see nothing at all have 0, whatever they read.
        forward.push_back(sees_some(query) ? is_read(out[0], query) : bool(expected.back()));
        of_dq.push_back(is_read(gradients[0], query));
        ++all, read += expected.back();
        for (int64_t n = 0, some = 0; n < tile * tile && !some; ++n) {
          const int64_t a = query * tile + n / tile, b = key * tile + n % tile;
          if (a < clean.c.queries && b < clean.c.keys) seen += some = sees(order, a, b);
        }
      }
    }
    CHECK(forward == expected);
    CHECK(of_dq == expected);
    of_dk.resize(expected.size()), of_dv.resize(expected.size());
    for (int64_t query = 0; query < of_queries; ++query) {
      OrderedAttention poisoned{order};
      poisoned.q = clean.q.clone(), poisoned.dout = clean.dout.clone();
      fill(rows_of(poisoned.q, query), NAN), fill(rows_of(poisoned.dout, query), NAN);
      const std::vector<Tensor> gradients = poisoned.backward(results);
      for (int64_t key = 0; key < of_keys; ++key) {
        of_dk[size_t(key * of_queries + query)] = is_read(gradients[1], key);
        of_dv[size_t(key * of_queries + query)] = is_read(gradients[2], key);
      }
    }
    CHECK(of_dk == expected);
    CHECK(of_dv == expected);
  }
  CHECK(read < all * 2 / 3);      // of so many pairs of tiles
  CHECK(read < seen + all / 10);  // a tile of two chunks may seem to see what it does not
}

// --- cuDNN. The emulator's is made of the own kernels.

namespace {

// Dense tensors of a bf16 call, on the device.
struct DenseCall {
  std::shared_ptr<Allocator> allocator = cuda::make_allocator(0);
  cuda::CudnnAttention call;
  Tensor q, k, v, dout, out, lse, dq, dk, dv;

  DenseCall(int64_t batch, int64_t heads, int64_t kv_heads, int64_t sequence, int64_t head_dim) {
    Shape of_q{batch, sequence, heads, head_dim}, of_k{batch, sequence, kv_heads, head_dim};
    auto random = [&](const Shape& shape, double frequency) {
      return as_bf16(wave(f32, shape, frequency)).to(allocator);
    };
    q = random(of_q, 0.37), k = random(of_k, 0.73), v = random(of_k, 1.19), dout = random(of_q, 0.83);
    for (Tensor* t : {&out, &dq}) *t = Tensor(allocator, bf16, of_q);
    for (Tensor* t : {&dk, &dv}) *t = Tensor(allocator, bf16, of_k);
    lse = Tensor(allocator, f32, {batch, heads, sequence});
    cuda::AttentionStrides a{sequence * heads * head_dim, heads * head_dim, head_dim},
        b{sequence * kv_heads * head_dim, kv_heads * head_dim, head_dim};
    call.shape = {bf16, batch, heads, kv_heads, sequence, sequence, head_dim, false, 0, a, b, b, a, a, a, b, b};
  }
  cuda::AttentionPointers pointers() const {
    return {q.bytes_data(),    k.bytes_data(),  v.bytes_data(),  out.bytes_data(), lse.bytes_data(),
            dout.bytes_data(), dq.bytes_data(), dk.bytes_data(), dv.bytes_data()};
  }
  std::vector<Tensor> run(cuda::Cudnn& cudnn, const cuda::AttentionLengths& lengths = {}) {
    for (cuda::AttentionPass pass : {cuda::AttentionPass::forward, cuda::AttentionPass::backward}) {
      call.pass = pass;
      cudnn.run(call, pointers(), 0.3, lengths);
    }
    return {out.cpu(), dq.cpu(), dk.cpu(), dv.cpu()};
  }
};

// The cuDNN of this machine, where its device has one that attention uses.
std::optional<cuda::cudnn::Api> find_cudnn() {
  if (cuda::properties(0).major != 9) return std::nullopt;
  try {
    return cuda::cudnn::load();
  } catch (const Error& e) {
    WARN("skipped: " << e.what());
    return std::nullopt;
  }
}

}  // namespace

TEST_CASE("cuda: cuDNN's padded attention is attention of each batch entry's part") {
  std::optional<cuda::cudnn::Api> api = find_cudnn();
  if (!api) return;
  const std::vector<int32_t> lengths{40, 13};
  for (bool causal : {false, true}) {
    DenseCall b(2, 4, 2, 40, 64);
    b.call.padded = true, b.call.shape.causal = causal;
    auto on_device = Storage(b.allocator, 8);
    cuda::copy(on_device.data(), lengths.data(), 8, b.allocator->stream());
    cuda::Cudnn cudnn(b.allocator, *api);
    auto* there = reinterpret_cast<int32_t*>(on_device.data());
    std::vector<Tensor> padded = b.run(cudnn, {there, there});
    for (int64_t i = 0; i < 2; ++i) {
      cuda::AttentionShape s = b.call.shape;
      s.batch = 1, s.queries = s.keys = lengths[size_t(i)];
      Tensor delta(b.allocator, f32, {s.heads, s.queries}), lse(b.allocator, f32, {s.heads, s.queries});
      auto entry = [&](const Tensor& t) { return t.narrow(0, i, 1).bytes_data(); };
      cuda::AttentionPointers p{entry(b.q),    entry(b.k),  entry(b.v),  entry(b.out), lse.bytes_data(),
                                entry(b.dout), entry(b.dq), entry(b.dk), entry(b.dv)};
      cuda::attention_forward(s, {}, p, 0.3, b.allocator->stream());
      cuda::attention_backward(s, {}, p, delta.bytes_data(), 0.3, b.allocator->stream());
      const Tensor* own[] = {&b.out, &b.dq, &b.dk, &b.dv};
      for (size_t t = 0; t < 4; ++t) {
        auto part = [&](const Tensor& whole) { return whole.narrow(0, i, 1).narrow(1, 0, s.queries).contiguous(); };
        check_near(part(padded[t]), part(own[t]->cpu()), 2e-2);
      }
    }
  }
}

TEST_CASE("cuda: cuDNN's deterministic backward pass in parts agrees with the other, and repeats its bits") {
  std::optional<cuda::cudnn::Api> api = find_cudnn();
  if (!api || api->version == 0) return;  // the emulator's is not run in parts
  DenseCall b(3, 8, 2, 8192, 64);
  b.call.shape.causal = true, b.call.pass = cuda::AttentionPass::backward;
  REQUIRE(cuda::attention_part(b.call) == cuda::AttentionPart{2, 2});
  cuda::Cudnn cudnn(b.allocator, *api);
  std::vector<Tensor> first = b.run(cudnn), second = b.run(cudnn);
  b.call.deterministic = false;
  std::vector<Tensor> any_order = b.run(cudnn);
  for (size_t t = 0; t < 4; ++t) {
    CHECK(same_bits(first[t], second[t]));
    check_near(any_order[t], first[t], 2e-2);
  }
}

TEST_CASE("cuda: a rank knows why it has no cuDNN") {
  auto rank = Rank::single(Device::cuda);
  std::string why = cuda::missing_cudnn(*rank);
  if (cuda::properties(0).major != 9)
    CHECK(why == "");  // none is looked for
  else if (!why.empty())
    CHECK_THAT(why, Contains("[cudnn] "));
}

namespace {

// One call of attention in bf16, forward and backward, and a product.
void attend_once(const DeviceMesh& mesh, int64_t sequence) {
  auto given = [&](int64_t heads, double frequency) {
    Tensor t = as_bf16(wave(f32, {2, sequence, heads, 64}, frequency)).to(mesh.rank_state().allocator());
    return ops::transpose(DistributedTensor::distribute(t, mesh, Layout()), 1, 2);
  };
  DistributedTensor q = given(4, 0.37), k = given(2, 0.73), v = given(2, 1.19);
  testing::Autograd autograd(mesh.rank_state());
  for (const DistributedTensor* x : {&q, &k, &v}) autograd.watch(*x);
  autograd.record.backward({ops::scaled_dot_product_attention(q, k, v, {.causal = true})}, {q});
  ops::matmul(k, ops::transpose(v, -2, -1));
}

}  // namespace

TEST_CASE("cuda: engines of attention are timed, told, and kept in the file of the products' algorithms") {
  std::optional<cuda::cudnn::Api> api = find_cudnn();
  if (!api) return;
  testing::Folder folder;
  const std::string file = folder / "tuned";
  auto with_rank = [&](auto f) {
    auto rank = Rank::single(Device::cuda);
    f(*rank, DeviceMesh(*rank, "x=1"));
  };
  with_rank([&](Rank& rank, const DeviceMesh& mesh) {
    attend_once(mesh, 32);
    cuda::Tuned tuned = cuda::tune(rank);
    CHECK(tuned.products == 1);
    REQUIRE(tuned.attention.size() == 2);
    CHECK_THAT(tuned.attention[0],
               Contains("attention forward of 2 x 32 queries, 32 keys, 4/2 heads of 64, causal: engine "));
    CHECK_THAT(tuned.attention[1], Contains("attention backward of 2 x 32 queries") && Contains(" ms"));
    if (api->version == 0) CHECK_THAT(tuned.attention[0], Contains("engine 12 takes ") && Contains("; engine 10 "));
    attend_once(mesh, 32);  // by what was chosen
    CHECK(cuda::tune(rank).attention.empty());
    cuda::save_tuned(rank, file);
  });
  const std::string text = testing::read_file(file);
  CHECK(std::count(text.begin(), text.end(), '\n') == 4);  // whose it is, a product, two of attention
  with_rank([&](Rank& rank, const DeviceMesh& mesh) {
    cuda::load_tuned(rank, file);
    attend_once(mesh, 32);
    CHECK(cuda::tune(rank).attention.empty());
    attend_once(mesh, 48);
    CHECK(cuda::tune(rank).attention.size() == 2);
    cuda::save_tuned(rank, file);
    CHECK(std::count(text.begin(), text.end(), '\n') + 3 == [&] {
      std::string more = testing::read_file(file);
      return std::count(more.begin(), more.end(), '\n');
    }());
  });
  with_rank([&](Rank& rank, const DeviceMesh&) {
    auto refused = [&](const std::string& line, const std::string& error) {
      std::ofstream(file) << text.substr(0, text.find('\n') + 1) << line << "\n";
      CHECK_THROWS_WITH(cuda::load_tuned(rank, file), Contains(error));
    };
    refused("attention of cuDNN 1: 2 3 = 0",
            "[attention] line 2 of " + file + " is no choice of an engine: \"attention");
    std::string line = text.substr(text.find("attention"));
    line = line.substr(0, line.find('\n'));
    refused(line + " 0", " is no choice of an engine: ");
    refused("attention of cuDNN 70000" + line.substr(line.find(':')),
            fmt::format("[attention] {} is of cuDNN 70000, and this is {}: tune again, to another file", file,
                        api->version));
    CHECK_THROWS_WITH(cuda::find_cudnn(rank)->load("/nowhere/file"), Contains("[attention] cannot read /nowhere/file"));
    CHECK_THROWS_WITH(cuda::find_cudnn(rank)->save("/nowhere/file"),
                      Contains("[attention] cannot write /nowhere/file"));
  });
}
