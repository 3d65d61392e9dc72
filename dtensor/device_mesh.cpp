#include "dtensor/device_mesh.h"

#include <fmt/format.h>
#include <algorithm>
#include <bit>

namespace dtensor {

// All meshes of a rank, by names, sizes, ranks and places as text.
struct DeviceMesh::Table {
  std::map<std::string, std::unique_ptr<State>> meshes;
};

DeviceMesh::DeviceMesh(Rank& rank, MeshShape shape, std::vector<int> strides, int index) {
  int first = rank.rank();
  std::string key;
  for (int a = 0; a < shape.axes(); ++a) {
    first -= shape.coordinate(index, a) * strides[size_t(a)];
    key += fmt::format("{}={}*{}{},", shape.name(a), shape.size(a), shape.size(a) > 1 ? strides[size_t(a)] : 0,
                       shape.place(a) == AxisPlace::across_nodes ? " across" : "");
  }
  if (!rank.meshes) rank.meshes = std::make_shared<Table>();
  auto& state = static_cast<Table*>(rank.meshes.get())->meshes[fmt::format("{}{}", key, first)];
  bool is_new = !state;
  if (is_new) state = std::make_unique<State>(State{&rank, std::move(shape), std::move(strides), index});
  state_ = std::shared_ptr<State>(rank.shared_from_this(), state.get());
  if (is_new && size() == rank.world()) make_communicators();
}

namespace {

std::vector<int> row_major(const MeshShape& shape) {
  std::vector<int> strides(size_t(shape.axes()), 1);
  for (int a = shape.axes() - 1; a > 0; --a) strides[size_t(a) - 1] = strides[size_t(a)] * shape.size(a);
  return strides;
}

const MeshShape& checked(const Rank& rank, const MeshShape& shape) {
  check(shape.world() == rank.world(), "[DeviceMesh] {} has {} ranks, but the program runs on {}: launch as many",
        shape, shape.world(), rank.world());
  return shape;
}

}  // namespace

DeviceMesh::DeviceMesh(Rank& rank, MeshShape shape)
    : DeviceMesh(rank, checked(rank, shape), row_major(shape), rank.rank()) {}

// Axes of one rank change nothing, so sets that differ by these have one communicator.
void DeviceMesh::make_communicators() const {
  AxisSet wide = shape().wide();
  for (AxisSet set = 0; set <= shape().all(); ++set)
    if ((set & ~wide) == 0 && (set || wide != shape().all()))
      rank_state().make_communicator(ranks(set), std::has_single_bit(set));
}

DeviceMesh DeviceMesh::operator[](std::string_view axes) const {
  AxisSet set = 0;
  for (size_t at = 0; at <= axes.size();) {
    size_t comma = std::min(axes.find(',', at), axes.size());
    set |= axis_bit(shape().axis(axes.substr(at, comma - at), "DeviceMesh::operator[]"));
    at = comma + 1;
  }
  if (set == shape().all()) return *this;
  State*& known = state_->parts[set];
  if (!known) {
    std::vector<int> strides;
    for (int a = 0; a < shape().axes(); ++a)
      if (has(set, a)) strides.push_back(state_->strides[size_t(a)]);
    known = DeviceMesh(rank_state(), shape().select(set), strides, shape().index_in(rank(), set)).state_.get();
  }
  DeviceMesh part;
  part.state_ = std::shared_ptr<State>(state_, known);
  return part;
}

RankGrid DeviceMesh::ranks(AxisSet axes) const {
  int first = rank_state().rank();
  for (int a = 0; a < shape().axes(); ++a)
    if (has(axes, a)) first -= coordinate(a) * state_->strides[size_t(a)];
  RankGrid grid(first);
  for (int a = 0; a < shape().axes(); ++a)
    if (has(axes, a)) grid = grid.with(shape().size(a), state_->strides[size_t(a)]);
  return grid;
}

Communicator& DeviceMesh::communicator(AxisSet axes) const {
  Communicator*& c = state_->communicators[axes & shape().all()];
  if (!c) c = &rank_state().communicator(ranks(axes));
  return *c;
}

std::string difference(const DeviceMesh& a, const DeviceMesh& b) {
  auto text = [](const DeviceMesh& m, std::string_view of = "") { return to_string(m.shape()) + std::string(of); };
  if (a.shape() != b.shape()) return fmt::format("{} and {}", text(a), text(b));
  if (&a.rank_state() != &b.rank_state())
    return fmt::format("{} and {} of two programs (each launch(), Rank::single() and Rank::recorded() has its own)",
                       text(a), text(b));
  auto ranks = [](const DeviceMesh& m) {
    std::vector<int> list = m.ranks(m.shape().all()).list();
    bool many = list.size() > 16;
    int last = list.back();
    if (many) list.resize(15);
    return fmt::format(" of ranks {}{}", fmt::join(list, ","), many ? fmt::format(",...,{}", last) : "");
  };
  return fmt::format("{} and {}", text(a, ranks(a)), text(b, ranks(b)));
}

void SpecHandle::destroy(const LocalSpec* spec) { delete spec; }

// Only the table holds those that go.
void DeviceMesh::sweep_specs() const {
  auto& specs = state_->specs;
  std::vector<uint64_t> uses;
  for (const SpecHandle& s : specs)
    if (s->handles_ == 1) uses.push_back(s->last_use_);
  if (uses.size() >= max_unheld_specs) {
    auto first_kept = uses.end() - max_unheld_specs / 2;
    std::nth_element(uses.begin(), first_kept, uses.end());
    std::erase_if(specs, [&](const SpecHandle& s) { return s->handles_ == 1 && s->last_use_ < *first_kept; });
    uses.resize(max_unheld_specs / 2);
  }
  state_->next_sweep = specs.size() + max_unheld_specs - uses.size();
}

SpecHandle DeviceMesh::intern(const TensorSpec& given) const {
  auto& specs = state_->specs;
  DType reduce_dtype = rank_state().reduce_dtype;
  auto it = specs.find(given);
  if (it != specs.end() && (*it)->local_dtype != part_dtype(given.dtype, given.layout, reduce_dtype))
    specs.erase(it), it = specs.end();  // of before Rank::reduce_dtype changed: who holds it keeps it
  if (it != specs.end()) {
    (*it)->last_use_ = ++state_->uses;
    return *it;
  }
  int64_t bytes = itemsize(part_dtype(given.dtype, given.layout));
  for (int64_t n : given.shape)
    if (n < 0 || __builtin_mul_overflow(bytes, n, &bytes))
      fail("[DeviceMesh] {}{}: a size is negative, or there are more bytes than can be counted", name(given.dtype),
           to_string(given.shape));
  for (int d = given.shape.dims(); d < max_dims; ++d)
    if (given.layout.split[size_t(d)].count)
      fail("[DeviceMesh] {}{} has no dimension {} to shard", name(given.dtype), to_string(given.shape), d);
  TensorSpec spec = given;
  spec.layout = strip_narrow_axes(shape(), spec.layout);
  if (spec != given) return intern(spec);
  if (specs.size() >= state_->next_sweep) sweep_specs();
  SpecHandle made =
      new LocalSpec(spec, rank_state().next_id(), local_box(shape(), spec.shape, spec.layout, rank()), reduce_dtype);
  made->last_use_ = ++state_->uses;
  return *specs.insert(std::move(made)).first;
}

}  // namespace dtensor
