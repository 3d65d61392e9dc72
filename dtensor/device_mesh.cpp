#include "dtensor/device_mesh.h"

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

const LocalSpec* DeviceMesh::intern(const TensorSpec& given) const {
  auto it = state_->specs.find(given);
  if (it != state_->specs.end()) return it->second.get();
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
  auto made = std::make_unique<LocalSpec>(
      LocalSpec{spec, rank_state().next_id(), local_box(shape(), spec.shape, spec.layout, rank()), {}});
  made->local_shape = made->box.shape();
  return state_->specs.emplace(spec, std::move(made)).first->second.get();
}

}  // namespace dtensor
