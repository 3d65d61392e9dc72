#include "ops/testing/simulation.h"

#include <fmt/format.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

namespace dtensor::testing {
namespace {

std::vector<const Shape*> shapes_of(const std::vector<Tensor>& inputs) {
  std::vector<const Shape*> shapes;
  for (const Tensor& t : inputs) shapes.push_back(t.defined() ? &t.shape() : nullptr);
  return shapes;
}

BoundRule rule_of(const Case& c) {
  auto first = std::find_if(c.inputs.begin(), c.inputs.end(), [](const Tensor& t) { return t.defined(); });
  dtensor::check(first != c.inputs.end(), "[{}] all operands of {} are absent", c.op.name, c.name);
  return bind_rule(c.op, shapes_of(c.inputs), c.attributes, first->dtype());
}

Tensor values(const SampleInput& in, uint64_t seed) {
  Random random(seed);
  int64_t n = numel(in.shape);
  if (in.kind == SampleInput::Kind::index) {
    std::vector<int64_t> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(random.below(int(std::max<int64_t>(in.bound, 1))));
    return Tensor::of<int64_t>(in.shape, v);
  }
  if (in.kind == SampleInput::Kind::boolean) {
    Tensor t(std::make_shared<Allocator>(), DType::boolean, in.shape);
    for (int64_t i = 0; i < n; ++i) t.data<bool>()[i] = random.below(2);
    return t;
  }
  std::vector<double> v;
  for (int64_t i = 0; i < n; ++i) {
    double x = random.uniform(0.1, 1.6);
    v.push_back(in.kind == SampleInput::Kind::positive || random.below(2) ? x : -x);
  }
  return Tensor::of<double>(in.shape, v);
}

void name_case(Case& c, const std::string& sample) {
  c.name = sample;
  for (const Tensor& t : c.inputs)
    c.name += t.defined() ? fmt::format(" {}{}", name(t.dtype()), to_string(t.shape())) : " absent";
  if (!c.attributes.empty()) c.name += fmt::format(" ({})", c.attributes.to_string());
}

Case case_of(const Op& op, const Sample& s, const std::string& sample, uint64_t seed) {
  Case c{op, {}, {}, {}, s.attributes};
  for (const SampleInput& in : s.inputs) {
    c.kinds.push_back(in.kind);
    c.inputs.push_back(in.kind == SampleInput::Kind::absent ? Tensor() : values(in, seed * 1000003 + c.inputs.size()));
  }
  name_case(c, sample);
  return c;
}

template <class T>
T combine(T a, T b, Reduce r) {
  switch (r) {
    case Reduce::sum:
    case Reduce::avg:
      return T(a + b);
    case Reduce::product:
      return T(a * b);
    case Reduce::min:
      return std::min(a, b);
    case Reduce::max:
      return std::max(a, b);
  }
  return 0;
}

double identity_of(Reduce r, SampleInput::Kind kind) {
  if (kind == SampleInput::Kind::boolean) return r == Reduce::min || r == Reduce::product;
  double infinity = kind == SampleInput::Kind::index ? 1e9 : std::numeric_limits<double>::infinity();
  return r == Reduce::max ? -infinity : r == Reduce::min ? infinity : r == Reduce::product;
}

// The contribution `mine` of n to one element.
double contribution(double value, SampleInput::Kind kind, int n, int mine, Reduce r, Contributions how,
                    Random& random) {
  bool whole = kind == SampleInput::Kind::index, positive = kind == SampleInput::Kind::positive;
  int last = random.below(n);  // the rank that makes up for the others
  double all = r == Reduce::avg ? n * value : value, rest = r == Reduce::product ? 1 : 0, own = 0;
  if (how == Contributions::identity) return mine == last ? all : identity_of(r, kind);
  for (int q = 0; q < n; ++q) {
    double u = whole ? random.below(9) : random.uniform(0.2, 0.9), x = random.below(2) ? u : -u;
    if (r == Reduce::product) x = whole ? (x < 0 ? -1 : 1) : u;
    if (r == Reduce::max) x = positive ? value * u : value - u;
    if (r == Reduce::min) x = value + u;
    if (kind == SampleInput::Kind::boolean) x = r == Reduce::min ? value + (x > 0) : value * (x > 0);
    if (q == mine) own = x;
    if (q != last) rest = r == Reduce::product ? rest * x : rest + x;
  }
  if (mine != last) return own;
  return r == Reduce::max || r == Reduce::min ? value : r == Reduce::product ? value / rest : all - rest;
}

void set_element(Tensor& t, int64_t i, double x) {
  if (t.dtype() == DType::f32)
    t.data<float>()[i] = float(x);
  else if (t.dtype() == DType::f64)
    t.data<double>()[i] = x;
  else if (t.dtype() == DType::i64)
    t.data<int64_t>()[i] = std::llround(x);
  else if (t.dtype() == DType::boolean)
    t.data<bool>()[i] = x != 0;
  else
    fail("[testing] contributions to {} are not supported", name(t.dtype()));
}

template <class T>
void add_tree(std::span<const Tensor> parts, Reduce r, T* to, int64_t n) {
  if (parts.size() == 1) {
    std::copy_n(parts[0].data<T>(), n, to);
    return;
  }
  auto right = std::make_unique<T[]>(size_t(n));
  add_tree(parts.first(parts.size() / 2), r, to, n);
  add_tree(parts.subspan(parts.size() / 2), r, right.get(), n);
  for (int64_t i = 0; i < n; ++i) {
    T a = to[i], b = right[size_t(i)];
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a) || std::isnan(b)) {
        to[i] = std::numeric_limits<T>::quiet_NaN();
        continue;
      }
    }
    to[i] = combine(a, b, r);
  }
}

}  // namespace

uint64_t Random::next() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::vector<Case> cases_of(const Op& op, const std::vector<int64_t>& sizes, uint64_t seed) {
  std::vector<Case> cases;
  for (size_t i = 0; i < op.sample.size(); ++i)
    cases.push_back(case_of(op, op.sample[i], fmt::format("sample {}", i), seed + i));
  if (op.composite) return cases;
  for (size_t i = 0; i < op.sample.size(); ++i) {
    BoundRule rule = rule_of(cases[i]);
    for (int f = 0; f < int(rule.factors().size()); ++f)
      for (int64_t size : sizes)
        if (auto c = with_size(cases[i], f, size, seed + i)) cases.push_back(std::move(*c));
  }
  return cases;
}

std::optional<Case> with_size(const Case& c, int f, int64_t size, uint64_t seed) {
  BoundRule rule = rule_of(c);
  const Factor& factor = rule.factors()[size_t(f)];
  if (factor.size == size || factor.size == 0) return {};
  Case out{c.op, {}, c.kinds, {}, c.attributes, true};
  bool found = false;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const Operand& operand = rule.inputs()[i];
    int d = operand.dim_of(f);
    if (operand.has_factor(f) && d < 0) return {};  // inside a product
    if (!c.inputs[i].defined()) {
      out.inputs.emplace_back();
      continue;
    }
    Shape shape = c.inputs[i].shape();
    if (d >= 0) shape[d] = shape[d] / factor.size * size, found = true;
    SampleInput in(c.kinds[i], shape);
    if (in.kind == SampleInput::Kind::index) {  // below the largest one there is
      for (int64_t k = 0; k < c.inputs[i].numel(); ++k)
        in.bound = std::max(in.bound, c.inputs[i].data<int64_t>()[k] + 1);
    }
    out.inputs.push_back(values(in, seed * 1000003 + i));
  }
  if (!found) return {};
  name_case(out, fmt::format("{}, {}={}:", c.name.substr(0, c.name.find(' ', 7)), factor.name, size));
  try {
    Simulation(out).run_whole();  // what the op refuses is no case
  } catch (const Error&) {
    return {};
  }
  return out;
}

Case as_f32(const Case& c) {
  Case out = c;
  for (Tensor& t : out.inputs) {
    if (!t.defined() || t.dtype() != DType::f64) continue;
    std::vector<float> v;
    for (int64_t i = 0; i < t.numel(); ++i) v.push_back(float(t.data<double>()[i]));
    t = Tensor::of<float>(t.shape(), v);
  }
  return out;
}

Tensor part(const Tensor& whole, SampleInput::Kind kind, const MeshShape& mesh, const Layout& layout, int rank,
            Contributions how, uint64_t seed) {
  Tensor from = whole;
  if (layout.partial) {
    from = whole.clone();
    int n = mesh.product(layout.partial), mine = mesh.index_in(rank, layout.partial);
    Random random(seed);
    for (int64_t i = 0; i < whole.numel(); ++i) {
      Random own(random.next());
      set_element(from, i, contribution(element(whole, i), kind, n, mine, layout.reduce, how, own));
    }
  }
  return from.part(local_box(mesh, whole.shape(), layout, rank)).clone();
}

std::string difference(const Tensor& got, const Tensor& expected, double tolerance) {
  if (got.dtype() != expected.dtype() || got.shape() != expected.shape())
    return fmt::format("is {}{}, not {}{}", name(got.dtype()), to_string(got.shape()), name(expected.dtype()),
                       to_string(expected.shape()));
  Tensor a = got.contiguous(), b = expected.contiguous();
  double scale = 1;
  for (int64_t i = 0; i < b.numel(); ++i)
    if (double y = element(b, i); std::isfinite(y)) scale = std::max(scale, std::abs(y));
  for (int64_t i = 0; i < b.numel(); ++i) {
    double x = element(a, i), y = element(b, i);
    if (x == y || (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= tolerance * scale) continue;
    return fmt::format("element {} of {} is {}, not {}", i, to_string(b.shape()), x, y);
  }
  return "";
}

bool same_bits(const Tensor& a, const Tensor& b) {
  Tensor x = a.contiguous(), y = b.contiguous();
  if (x.dtype() != y.dtype() || x.shape() != y.shape()) return false;
  return x.bytes() == 0 || std::memcmp(x.bytes_data(), y.bytes_data(), size_t(x.bytes())) == 0;
}

bool exists(const Case& c, const Strategy& s) {
  for (size_t i = 0; i < s.inputs.size(); ++i)
    if (c.kinds[i] == SampleInput::Kind::boolean && s.inputs[i].is_partial() && s.inputs[i].reduce != Reduce::max &&
        s.inputs[i].reduce != Reduce::min)
      return false;
  return true;
}

Tensor combined(std::span<const Tensor> parts, Reduce r) {
  std::vector<Tensor> list;
  for (const Tensor& t : parts) list.push_back(t.contiguous());
  Tensor sum = list[0].clone();
  int64_t n = sum.numel();
  switch (sum.dtype()) {
    case DType::f32:
      add_tree(std::span<const Tensor>(list), r, sum.data<float>(), n);
      break;
    case DType::f64:
      add_tree(std::span<const Tensor>(list), r, sum.data<double>(), n);
      break;
    case DType::i64:
      add_tree(std::span<const Tensor>(list), r, sum.data<int64_t>(), n);
      break;
    case DType::boolean:
      add_tree(std::span<const Tensor>(list), r, sum.data<bool>(), n);
      break;
    default:
      fail("[testing] Partial {} is not supported", name(sum.dtype()));
  }
  if (r == Reduce::avg)
    for (int64_t i = 0; i < n; ++i) set_element(sum, i, element(sum, i) / double(parts.size()));
  return sum;
}

Simulation::Simulation(const Case& c, int threads)
    : case_(c), rule_(rule_of(c)), pool_(threads), scratch_(size_t(threads)) {}

DType Simulation::output_type(int o) const {
  std::vector<TensorSpec> specs;
  for (const Tensor& t : case_.inputs)
    specs.push_back(t.defined() ? TensorSpec{t.dtype(), t.shape(), {}} : TensorSpec{});
  std::vector<const TensorSpec*> pointers;
  for (size_t i = 0; i < specs.size(); ++i) pointers.push_back(case_.inputs[i].defined() ? &specs[i] : nullptr);
  return case_.op.types(case_.op.name, pointers, case_.attributes, o);
}

std::vector<Tensor> Simulation::run(const MeshShape& mesh, uint64_t sharded, int rank, std::span<const Tensor> inputs,
                                    double garbage) {
  const Op& op = case_.op;
  AxisList split;
  split.push_back(0);
  std::vector<Context::FactorRange> ranges;
  for (size_t f = 0; f < rule_.factors().size(); ++f) {
    const Factor& factor = rule_.factors()[f];
    ranges.push_back({factor.name,
                      sharded >> f & 1 ? local_range(mesh, factor.size, split, rank) : Range{0, factor.size},
                      factor.size});
  }
  std::vector<Tensor> in, out;
  for (const Tensor& t : inputs) in.push_back(!t.defined() || op.strided ? t : t.contiguous());
  for (int i : op.writes) in[size_t(i)] = in[size_t(i)].clone();
  std::vector<Shape> shapes;
  for (size_t o = 0; o < rule_.outputs().size(); ++o) {
    const Operand& operand = rule_.outputs()[o];
    Layout layout;
    for (int d = 0; d < operand.shape.dims(); ++d)
      if (int f = operand.leading[size_t(d)]; f >= 0 && (sharded >> f & 1)) layout.split[size_t(d)] = split;
    shapes.push_back(local_box(mesh, operand.shape, layout, rank).shape());
    if (o < op.writes.size()) {
      out.push_back(in[size_t(op.writes[o])]);
      continue;
    }
    out.emplace_back(allocator_, output_type(int(o)), shapes.back(), op.view ? Device::meta : Device::cpu);
    if (!op.view) fill(out.back(), is_floating(out.back().dtype()) ? garbage : std::isnan(garbage) ? 0 : 1);
  }
  op.cpu(Context(op.name, case_.attributes, ranges, pool_, scratch_, allocator_), in, out);
  for (size_t o = 0; o < out.size(); ++o)
    dtensor::check(out[o].shape() == shapes[o], "[{}] the kernel left output {} with shape {}, not {}", op.name, o,
                   out[o].shape(), shapes[o]);
  return out;
}

std::vector<std::vector<Tensor>> Simulation::run_parts(const MeshShape& mesh, uint64_t sharded,
                                                       std::span<const Placement> inputs, Contributions contributions,
                                                       uint64_t seed) {
  std::vector<std::vector<Tensor>> parts(rule_.outputs().size());
  for (int r = 0; r < mesh.world(); ++r) {
    std::vector<Tensor> in;
    for (size_t i = 0; i < inputs.size(); ++i)
      in.push_back(case_.inputs[i].defined()
                       ? part(case_.inputs[i], case_.kinds[i], mesh, Layout{inputs[i]}, r, contributions, seed + i)
                       : Tensor());
    std::vector<Tensor> out = run(mesh, sharded, r, in);
    for (size_t o = 0; o < out.size(); ++o) parts[o].push_back(out[o]);
  }
  return parts;
}

std::string to_string(const Strategy& s) {
  auto list = [](const std::vector<Placement>& placements) {
    std::string text;
    for (const Placement& p : placements) text += (text.empty() ? "" : ",") + dtensor::to_string(p);
    return text;
  };
  return list(s.inputs) + "->" + list(s.outputs);
}

}  // namespace dtensor::testing
