#include "dtensor/device_mesh.h"

#include <algorithm>
#include <numeric>

namespace dtensor {

DeviceMesh::DeviceMesh(Rank& rank, MeshShape shape) : state_(std::make_shared<State>()) {
  check(shape.world() == rank.world(), "[DeviceMesh] {} has {} ranks, but the program runs on {}: launch as many",
        to_string(shape), shape.world(), rank.world());
  state_->rank = rank.shared_from_this();
  state_->shape = std::move(shape);
  state_->ranks.resize(size_t(rank.world()));
  std::iota(state_->ranks.begin(), state_->ranks.end(), 0);
  state_->index = rank.rank();
}

DeviceMesh DeviceMesh::operator[](std::string_view axes) const {
  AxisSet set = 0;
  for (size_t at = 0; at <= axes.size();) {
    size_t comma = std::min(axes.find(',', at), axes.size());
    set |= axis_bit(shape().axis(axes.substr(at, comma - at), "DeviceMesh::operator[]"));
    at = comma + 1;
  }
  if (set == shape().all()) return *this;
  DeviceMesh part;
  part.state_ = state_->parts[set].lock();
  if (part.state_) return part;
  part.state_ = std::make_shared<State>();
  part.state_->rank = state_->rank;
  part.state_->shape = shape().select(set);
  for (int r : shape().group(rank(), set)) part.state_->ranks.push_back(state_->ranks[size_t(r)]);
  part.state_->index = shape().index_in(rank(), set);
  state_->parts[set] = part.state_;
  return part;
}

Communicator& DeviceMesh::communicator(AxisSet axes) const {
  Communicator*& c = state_->communicators[axes];
  if (!c) {
    std::vector<int> ranks;
    for (int r : shape().group(rank(), axes)) ranks.push_back(state_->ranks[size_t(r)]);
    c = &rank_state().communicator(ranks);
  }
  return *c;
}

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
  if (auto it = specs.find(given); it != specs.end()) {
    (*it)->last_use_ = ++state_->uses;
    return *it;
  }
  int64_t bytes = itemsize(given.dtype);
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
  SpecHandle made = new LocalSpec(spec, rank_state().next_id(), local_box(shape(), spec.shape, spec.layout, rank()));
  made->last_use_ = ++state_->uses;
  return *specs.insert(std::move(made)).first;
}

}  // namespace dtensor
