// Cards that work on rows: CUDA kernels against the CPU's in float64, on widths and counts that take every path.
#include <catch2/catch.hpp>
#include <cmath>

#include "dtensor/local/bfloat16.h"
#include "ops/all.h"
#include "ops/family/dims.h"

using namespace dtensor;
using Kind = SampleInput::Kind;

namespace {

// Numbers that float32 and bfloat16 hold, the same for all types. Indices are below their bound.
std::vector<double> values_of(const SampleInput& s, uint64_t seed) {
  std::vector<double> v(size_t(numel(s.shape)));
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (double& x : v) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint64_t r = state >> 33;
    if (s.kind == Kind::index)
      x = double(int64_t(r % uint64_t(std::max<int64_t>(s.bound, 1))));
    else if (s.kind == Kind::boolean)
      x = double(r % 2);
    else
      x = (s.kind == Kind::positive ? 0.25 + double(r % 128) / 64 : double(r % 255) / 64 - 2);
  }
  return v;
}
template <class T>
Tensor tensor_as(const Shape& shape, const std::vector<double>& values) {
  std::unique_ptr<T[]> v(new T[values.size()]);
  for (size_t i = 0; i < values.size(); ++i) v[i] = T(values[i]);
  return Tensor::of<T>(shape, std::span<const T>(v.get(), values.size()));
}
Tensor tensor_of(DType type, const Shape& shape, const std::vector<double>& values) {
  switch (type) {
    case DType::f32:
      return tensor_as<float>(shape, values);
    case DType::f64:
      return tensor_as<double>(shape, values);
    case DType::bf16:
      return tensor_as<BFloat16>(shape, values);
    case DType::i64:
      return tensor_as<int64_t>(shape, values);
    case DType::boolean:
      return tensor_as<bool>(shape, values);
  }
  return {};
}

struct World {
  explicit World(Device device) : rank(Rank::single(device)), mesh(*rank, "x=1") {}

  // Of floating inputs `type`, or its statistics_type where the bit in `statistics` is set.
  std::vector<Tensor> run(const Op& op, DType type, unsigned statistics, const std::vector<SampleInput>& inputs,
                          const std::vector<std::vector<double>>& values, const Attributes& attributes) {
    std::vector<DistributedTensor> in(inputs.size());
    std::vector<const DistributedTensor*> pointers(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      const SampleInput& s = inputs[i];
      if (s.kind == Kind::absent) continue;
      DType t = s.kind == Kind::index     ? DType::i64
                : s.kind == Kind::boolean ? DType::boolean
                : statistics >> i & 1     ? ops::statistics_type(type)
                                          : type;
      in[i] = DistributedTensor::distribute(tensor_of(t, s.shape, values[i]).to(rank->allocator()), mesh, Layout());
      pointers[i] = &in[i];
    }
    std::vector<Tensor> out;
    for (const DistributedTensor& y : call_all(op, pointers, attributes)) out.push_back(y.local().cpu());
    return out;
  }

  std::shared_ptr<Rank> rank;
  DeviceMesh mesh;
};

struct Case {
  std::string_view card;
  std::vector<SampleInput> inputs;
  Attributes attributes = {};
  unsigned statistics = 0;         // bit i: input i
  std::vector<double> first = {};  // what input 0 begins with
};

// The first difference beyond `tolerance` of what is compared, relative to the largest element of its output.
std::string difference(const std::vector<Tensor>& got, const std::vector<Tensor>& expected, DType type) {
  for (size_t o = 0; o < got.size(); ++o) {
    double largest = 0;
    for (int64_t i = 0; i < expected[o].numel(); ++i)
      if (double e = std::abs(element(expected[o], i)); std::isfinite(e)) largest = std::max(largest, e);
    double tolerance = (got[o].dtype() == DType::bf16 ? 0x1p-8 : type == DType::f64 ? 1e-12 : 2e-5) * (1 + largest);
    for (int64_t i = 0; i < expected[o].numel(); ++i) {
      double g = element(got[o], i), e = element(expected[o], i);
      bool same = std::isfinite(e) ? std::abs(g - e) <= tolerance : std::isnan(e) ? std::isnan(g) : g == e;
      if (!same) return fmt::format("output {}[{}] of {}: {} instead of {}", o, i, expected[o].numel(), g, e);
    }
  }
  return "";
}
bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t o = 0; o < a.size(); ++o)
    if (std::memcmp(a[o].bytes_data(), b[o].bytes_data(), size_t(a[o].bytes()))) return false;
  return true;
}

// CARD=name: that one only.
void check_cases(const std::vector<Case>& cases) {
  World cpu(Device::cpu), device(Device::cuda);
  const char* only = std::getenv("CARD");
  for (const Case& c : cases) {
    if (only && c.card != only) continue;
    const Op& op = ops::find(c.card, "rows_test");
    std::vector<std::vector<double>> values;
    for (size_t i = 0; i < c.inputs.size(); ++i) values.push_back(values_of(c.inputs[i], i + 1));
    std::copy(c.first.begin(), c.first.end(), values[0].begin());
    std::vector<Tensor> expected = cpu.run(op, DType::f64, c.statistics, c.inputs, values, c.attributes);
    for (DType type : {DType::bf16, DType::f32, DType::f64}) {
      std::string shapes;
      for (const SampleInput& s : c.inputs) shapes += to_string(s.shape);
      INFO(c.card << " " << name(type) << " " << shapes << " " << c.attributes.to_string());
      std::vector<Tensor> got = device.run(op, type, c.statistics, c.inputs, values, c.attributes);
      CHECK(difference(got, expected, type) == "");
      CHECK(same_bits(got, device.run(op, type, c.statistics, c.inputs, values, c.attributes)));
    }
  }
}

constexpr int64_t widths[] = {1, 3, 8, 33, 768, 1000, 2056, 4096, 8200, 50257};
// Few wide rows, and many narrow ones.
struct Size {
  int64_t rows, width;
};
std::vector<Size> sizes() {
  std::vector<Size> list{{0, 5}, {1, 7}, {1000, 3}, {300, 16}, {3, 0}};
  for (int64_t w : widths) list.push_back({w > 5000 ? 2 : 5, w});
  return list;
}

const ops::RmsNorm eps{1e-5};

}  // namespace

TEST_CASE("cuda rows: norms and their gradients") {
  std::vector<Case> cases;
  for (auto [n, d] : sizes()) {
    if (d == 0) continue;
    SampleInput x{n, d}, w{d}, rstd{Kind::positive, {n}};
    cases.push_back({"rms_norm", {x, w}, eps});
    cases.push_back({"add_rms_norm", {x, x, w}, eps});
    cases.push_back({"rms_norm_backward", {x, x, w, rstd}, {}, 0b1000});
    cases.push_back({"add_rms_norm_backward", {x, x, w, rstd, x}, {}, 0b1000});
    ops::LastDims one{1};
    ops::LayerNorm norm{one, 1e-5};
    ops::LayerNormBackward affine{one, true}, plain{one, false};
    SampleInput none{Kind::absent, {}}, sum{n};
    cases.push_back({"layer_norm", {x, w, w}, norm});
    cases.push_back({"layer_norm_backward", {x, x, w, sum, rstd, none, none}, affine, 0b11000});
    cases.push_back({"layer_norm_backward", {x, x, none, none, rstd, sum, sum}, plain, 0b1110000});
    cases.push_back({"layer_norm_backward", {x, x, w, none, rstd, none, none}, affine, 0b11000});
    cases.push_back({"normalize", {x, none, w, none, rstd}, one, 0b11000});
    cases.push_back({"norm_gradient_sums", {x, x, w, sum, rstd}, one, 0b11000});
  }
  // More rows than there are warps, or blocks: a team adds those that are its own.
  for (auto [n, d] : {Size{4300, 8}, Size{600, 1040}})
    cases.push_back({"rms_norm_backward", {{n, d}, {n, d}, {d}, {Kind::positive, {n}}}, {}, 0b1000});
  check_cases(cases);
}

TEST_CASE("cuda rows: a warp with its row in shared memory adds to the bits of a block") {
  World device(Device::cuda);
  auto waves = [](int64_t rows, int64_t d, int64_t width, double frequency) {  // of width, zeros from d on
    std::vector<double> v(size_t(rows * width));
    for (int64_t i = 0; i < rows * d; ++i) v[size_t(i / d * width + i % d)] = std::sin(frequency * double(i + 1));
    return v;
  };
  // Of float32 a warp takes two rows at once of up to 2,048 elements, or one of up to 4,096; else a block does.
  for (int64_t d : {2052, 3000, 4096}) {
    INFO(d);
    SampleInput x{20, d}, w{d};
    std::vector<double> of_x = waves(20, d, d, 0.37), of_w = waves(1, d, d, 0.73);
    std::vector<Tensor> by_warp = device.run(ops::find("rms_norm", ""), DType::f32, 0, {x, w}, {of_x, of_w}, eps);
    std::vector<Tensor> added = device.run(ops::find("add_rms_norm", ""), DType::f32, 0, {x, x, w},
                                           {of_x, std::vector<double>(of_x.size()), of_w}, eps);
    CHECK(same_bits(by_warp, {added[0], added[2]}));
  }
  for (int64_t d : {516, 2048}) {
    const int64_t wide = 2052, rows = 1100;  // some blocks have three of them
    auto run = [&](std::string_view card, int64_t width, unsigned statistics, bool sums) {
      SampleInput x{rows, width}, w{width}, none{Kind::absent, {}}, of_rows{rows};
      std::vector<double> dy = waves(rows, d, width, 0.83), of_x = waves(rows, d, width, 0.37),
                          of_w = waves(1, d, width, 0.73), rstd = waves(1, rows, rows, 0.19);
      return sums ? device.run(ops::find(card, ""), DType::f32, statistics, {x, x, w, of_rows, of_rows},
                               {dy, of_x, of_w, waves(1, rows, rows, 0.29), rstd}, ops::LastDims{1})
                  : device.run(ops::find(card, ""), DType::f32, statistics, {x, x, w, of_rows}, {dy, of_x, of_w, rstd},
                               {});
    };
    INFO(d);
    CHECK(same_bits(run("norm_gradient_sums", d, 0b11000, true), run("norm_gradient_sums", wide, 0b11000, true)));
    Tensor by_warp = run("rms_norm_backward", d, 0b1000, false)[1],
           by_block = run("rms_norm_backward", wide, 0b1000, false)[1];
    CHECK(same_bits({by_warp}, {by_block.narrow(0, 0, d).contiguous()}));
  }
}

TEST_CASE("cuda rows: reductions along any dimensions") {
  struct Shaped {
    Shape shape;
    ops::Dims dims;
    Shape kept;
  };
  std::vector<Shaped> list;
  for (auto [n, d] : sizes()) list.push_back({{n, d}, {1}, {n}});
  for (Shaped s : std::initializer_list<Shaped>{{{20000}, {0}, {}},
                                                {{3, 40000}, {1}, {3}},
                                                {{300, 7}, {0}, {7}},
                                                {{2, 700, 5}, {1}, {2, 5}},
                                                {{1, 33}, {0}, {33}},
                                                {{0, 5}, {0}, {5}},
                                                {{4, 5, 3, 2}, {0, 2}, {5, 2}},
                                                {{4, 5, 3, 2}, {1, 2}, {4, 2}},
                                                {{4, 5, 6}, {0, 1, 2}, {}},
                                                {{}, {}, {}}})
    list.push_back(s);
  std::vector<Case> cases;
  for (const Shaped& s : list) {
    ops::Over a{s.dims};
    SampleInput x(Kind::normal, s.shape), ids(Kind::index, s.shape, 5), flags(Kind::boolean, s.shape),
        y(Kind::normal, s.kept), of(Kind::positive, s.kept), id(Kind::index, s.kept, 5), flag(Kind::boolean, s.kept);
    bool some = numel(s.shape) > 0;
    for (const SampleInput& v : {x, ids}) cases.push_back({"sum", {v}, a});
    for (const SampleInput& v : {x, ids, flags}) {
      cases.push_back({"count_nonzero", {v}, a});
      for (auto card : {"amax", "amin"}) cases.push_back({card, {v}, a});
      if (some)
        for (auto card : {"argmax", "argmin"}) cases.push_back({card, {v}, a});
    }
    if (s.dims.size() < 2)
      for (bool reverse : {false, true}) {
        for (const SampleInput& v : {x, ids}) cases.push_back({"cumsum", {v}, ops::Scan{a, reverse}});
      }
    cases.push_back({"ties", {ids, id}, a});
    cases.push_back({"first_index", {ids, id}, a});
    cases.push_back({"first_index", {flags, flag}, a});
    cases.push_back({"amax_backward", {id, ids, id}, a});
    if (numel(s.shape) < 300)
      for (auto card : {"prod", "prod_parts"}) cases.push_back({card, {x}, a});
    cases.push_back({"prod", {ids}, a});
    cases.push_back({"prod_backward", {y, x, y, id}, a});
    for (bool root : {false, true}) {
      ops::Var var{a, 0.5, root};
      cases.push_back({"var", {x}, var});
      cases.push_back({"var_backward", {y, x, y, of}, var, 0b100});
    }
    cases.push_back({"centred_squares", {x, y}, a, 0b10});
    for (double p : numel(s.shape) < 2000 ? std::vector{2.0, 1.0, 0.0, 3.0, 0.5} : std::vector{2.0}) {
      ops::VectorNorm norm{a, p};
      cases.push_back({"norm", {x}, norm});
      cases.push_back({"power_sum", {x, of}, norm, 0b10});
      cases.push_back({"norm_root", {of, of}, ops::Root{p}, 0b11});
      cases.push_back({"norm_backward", {y, x, of}, norm});
    }
    cases.push_back({"logsumexp", {x}, a});
    cases.push_back({"exp_sum", {x, y}, a, 0b10});
    cases.push_back({"logsumexp_backward", {y, x, y}, a});
  }
  cases.push_back({"sum_squares", {{3, 40000}}});
  cases.push_back({"sum_squares", {{0}}});
  check_cases(cases);
}

TEST_CASE("cuda rows: softmax and cross entropy") {
  std::vector<Case> cases;
  for (auto [n, v] : sizes()) {
    for (auto [dim, rows] : {std::pair(int64_t(1), n), std::pair(int64_t(0), v)}) {
      if (dim == 0 && n * v > 20000) continue;
      ops::Over a{{dim}};
      SampleInput x{n, v}, of_rows{rows}, positive{Kind::positive, {rows}};
      for (auto card : {"softmax", "log_softmax"}) cases.push_back({card, {x}, a});
      for (auto card : {"softmax_backward", "log_softmax_backward"}) cases.push_back({card, {x, x}, a});
      for (auto card : {"sharded_softmax_backward", "sharded_log_softmax_backward"})
        cases.push_back({card, {x, x, of_rows}, a, 0b100});
      cases.push_back({"exp_shifted", {x, of_rows}, a});
      cases.push_back({"log_softmax_shifted", {x, of_rows, positive}, a});
    }
    if (v == 0) continue;
    SampleInput x{n, v}, m{Kind::positive, {n}}, target(Kind::index, {n}, v);
    cases.push_back({"sum_exp", {x, m}, {}, 0b10});
    cases.push_back({"sum_below", {x, m}, {}, 0b10});
    cases.push_back({"pick", {x, target}, ops::Ignore{1}});
    for (double smoothing : {0.0, 0.25}) {
      ops::Smoothed a{{1}, smoothing};
      ops::LossRows of_rows{a, v};
      cases.push_back({"cross_entropy_forward", {x, target}, a});
      cases.push_back({"cross_entropy_rows", {m, m, m, target, m}, of_rows, 0b10111});
      cases.push_back({"cross_entropy_backward", {x, m, m, target, m}, a, 0b10110});
      cases.push_back({"cross_entropy_backward", {x, m, m, target, SampleInput{}}, a, 0b10110});
    }
  }
  check_cases(cases);
}

TEST_CASE("cuda rows: embedding and rotary") {
  const SampleInput absent{Kind::absent, {}};
  std::vector<Case> cases;
  for (auto [n, d] : sizes()) {
    SampleInput ids(Kind::index, {n}, 3), w{3, d}, wide(Kind::index, {n}, 1000);
    cases.push_back({"embedding", {ids, w}, ops::Padding{}});
    cases.push_back({"embedding_backward", {ids, {n, d}}, ops::TableSize{3}});
    cases.push_back({"embedding_backward", {ids, {n, d}}, ops::TableSize{3, 1}});
    if (d < 1000) cases.push_back({"embedding_backward", {wide, {n, d}}, ops::TableSize{1000}});
  }
  cases.push_back({"embedding_backward", {{Kind::index, {3000}, 40}, {3000, 3}}, ops::TableSize{40}});
  for (bool inverse : {false, true}) {
    ops::Rotary a{.theta = 10000, .inverse = inverse};
    ops::Rotary part{.theta = 10000, .frequencies = {1, 0.5, 0.1, 0.01}, .scale = 1.25, .inverse = inverse};
    cases.push_back({"rotary", {{2, 5, 3, 16}, absent}, part});
    cases.push_back({"rotary_pair", {{2, 7, 4, 9}, {2, 7, 2, 9}, absent}, part});
    cases.push_back({"rotary", {{2, 5, 3, 16}, absent}, a});
    cases.push_back({"rotary", {{1, 300, 1, 6}, absent}, a});
    cases.push_back({"rotary_pair", {{2, 7, 8, 64}, {2, 7, 2, 64}, absent}, a});
    cases.push_back({"rotary_pair", {{0, 7, 2, 8}, {0, 7, 2, 8}, absent}, a});
    cases.push_back({"rotary", {{2, 0, 2, 8}, absent}, a});
    for (const Shape& of : {Shape{7}, Shape{3, 7}})  // the same positions for all batch entries, or their own
      for (const ops::Rotary& turn : {a, part}) {
        SampleInput positions(Kind::index, of, 5000);
        cases.push_back({"rotary", {{3, 7, 2, 24}, positions}, turn});
        cases.push_back({"rotary_pair", {{3, 7, 6, 16}, {3, 7, 2, 16}, positions}, turn});
        cases.push_back({"rotary_pair", {{3, 7, 2, 10}, {3, 7, 1, 10}, positions}, turn});
      }
  }
  check_cases(cases);
}

TEST_CASE("cuda rows: rotary turns by the positions of the launch, to the same bits wherever a position is") {
  World device(Device::cuda);
  cuda::StreamHandle at = device.rank->allocator()->stream();
  const int64_t batch = 2, sequence = 6, all = 40;
  for (DType type : {DType::f32, DType::bf16})
    for (const ops::RotaryAngles& angles :
         {ops::RotaryAngles{},
          ops::RotaryAngles{.frequencies = {1, 0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6}, .scale = 1.5}})
      for (const Shape& shape : {Shape{sequence}, Shape{batch, sequence}}) {
        // The same token everywhere: what becomes of it depends on its position alone.
        const std::vector<double> token = values_of({3, 32}, 1);
        auto of_tokens = [&](int64_t b, int64_t s) {
          std::vector<double> values;
          for (int64_t i = 0; i < b * s; ++i) values.insert(values.end(), token.begin(), token.end());
          return DistributedTensor::distribute(tensor_of(type, {b, s, 3, 32}, values).to(device.rank->allocator()),
                                               device.mesh, Layout());
        };
        auto x = of_tokens(batch, sequence);
        Tensor expected = ops::rotary(of_tokens(1, all), angles).local().cpu();
        auto list = [&](int64_t step) {
          std::vector<int64_t> p;
          for (int64_t i = 0; i < numel(shape); ++i) p.push_back((i * 7 + step * 11) % all);
          return Tensor::of<int64_t>(shape, p);
        };
        auto positions = DistributedTensor::distribute(list(0).to(device.rank->allocator()), device.mesh, Layout());
        auto check_step = [&](const Tensor& got, int64_t step) {
          Tensor p = list(step), y = got.cpu();
          for (int64_t b = 0; b < batch; ++b)
            for (int64_t s = 0; s < sequence; ++s) {
              auto i = int64_t(element(p, shape.dims() == 2 ? b * sequence + s : s));
              Tensor row = y.narrow(0, b, 1).narrow(1, s, 1).contiguous(), of = expected.narrow(1, i, 1).contiguous();
              CHECK(same_bits({row}, {of}));
            }
        };
        check_step(ops::rotary(x, angles, positions).local(), 0);
        cuda::PrivatePool pool(device.rank->allocator());
        pool.begin();
        cuda::Graph::begin(at);
        auto captured = ops::rotary(x, angles, positions);
        cuda::Graph graph = cuda::Graph::end(at);
        pool.end();
        for (int64_t step : {1, 2}) {
          copy(list(step).to(device.rank->allocator()), positions.local());
          graph.launch(at);
          check_step(captured.local(), step);
        }
      }
}

TEST_CASE("cuda rows: NaN and infinity go where the CPU's go") {
  std::vector<Case> cases;
  SampleInput w{40}, target(Kind::index, {4}, 40), of_rows{4};
  const ops::Over last{{1}}, first{{0}};
  const ops::Smoothed loss{{-100}, 0};
  for (double special : {double(NAN), double(INFINITY), -double(INFINITY)})
    for (size_t count : {1, 40}) {  // an element of row 0, or all of it
      std::vector<double> values(count, special);
      SampleInput x{4, 40};
      cases.push_back({"rms_norm", {x, w}, eps, 0, values});
      cases.push_back({"layer_norm", {x, w, w}, ops::LayerNorm{{1}, 1e-5}, 0, values});
      for (const ops::Over& a : {last, first})
        for (auto card : {"sum", "prod", "amax", "amin", "argmax", "argmin", "logsumexp", "softmax", "log_softmax"})
          cases.push_back({card, {x}, a, 0, values});
      cases.push_back({"exp_sum", {x, of_rows}, last, 0b10, values});
      cases.push_back({"cross_entropy_forward", {x, target}, loss, 0, values});
    }
  check_cases(cases);
}

TEST_CASE("cuda rows: ids and targets that do not exist make their rows NaN") {
  World device(Device::cuda);
  auto run = [&](const Op& op, const std::vector<SampleInput>& inputs, const std::vector<std::vector<double>>& values,
                 const Attributes& attributes = {}) {
    std::vector<std::vector<double>> out;
    for (const Tensor& t : device.run(op, DType::f32, 0, inputs, values, attributes)) {
      out.emplace_back();
      for (int64_t i = 0; i < t.numel(); ++i) out.back().push_back(std::isnan(element(t, i)) ? -99 : element(t, i));
    }
    return out;
  };
  using Rows = std::vector<double>;
  SampleInput wide{1, 1, 1, 514}, absent(Kind::absent, {});
  CHECK_THROWS_WITH(run(ops::rotary_op, {wide, absent}, {Rows(514), {}}, ops::Rotary{100}),
                    Catch::Contains("[rotary] 257 pairs turn; on CUDA at most 256 do"));
  SampleInput ids(Kind::index, {4}), table{2, 2}, each{4};
  const Rows bad{1, -1, 2, 0};
  CHECK(run(ops::embedding_op, {ids, table}, {bad, {1, 2, 3, 4}})[0] == Rows{3, 4, -99, -99, -99, -99, 1, 2});
  CHECK(run(ops::embedding_backward_op, {ids, {4, 2}}, {bad, {1, 2, 3, 4, 5, 6, 7, 8}}, ops::TableSize{2})[0] ==
        Rows{7, 8, 1, 2});
  ops::Smoothed a{{-1}, 0};
  CHECK(run(ops::pick_op, {{4, 2}, ids}, {{1, 2, 3, 4, 5, 6, 7, 8}, bad}, ops::Ignore{-1})[0] == Rows{2, 0, -99, 7});
  auto loss = run(ops::cross_entropy_forward_op, {{4, 1}, ids}, {{1, 2, 3, 4}, bad}, a);
  CHECK(loss[0] == Rows{-99, 0, -99, 0});
  CHECK(loss[3] == Rows{1, 0, 1, 1});
  CHECK(run(ops::cross_entropy_backward_op, {{4, 2}, each, each, ids, {}},
            {Rows(8, 0), Rows(4, 0), Rows(4, 0), bad, {1}}, a)[0] == Rows{1, 0, 0, 0, -99, -99, 0, 1});
}
