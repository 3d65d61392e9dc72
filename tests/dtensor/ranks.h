// Helpers for tests that run on ranks. Catch's assertions are for one thread: ranks note what they find or throw, and
// the test compares when launch() has returned.
#pragma once

#include <string>
#include <vector>

#include "dtensor/device_mesh.h"
#include "dtensor/distributed_tensor.h"
#include "dtensor/launch.h"
#include "dtensor/redistribute.h"
#include "tests/errors.h"

namespace dtensor::testing {

// All elements of a tensor with any strides, in row-major order.
template <class T>
std::vector<T> values(const Tensor& t) {
  std::vector<T> v;
  Shape at = Shape::filled(t.dims(), 0);
  for (int64_t i = 0; i < t.numel(); ++i) {
    int64_t offset = 0;
    for (int d = 0; d < t.dims(); ++d) offset += at[d] * t.strides()[d];
    v.push_back(t.data<T>()[offset]);
    for (int d = t.dims() - 1; d >= 0 && ++at[d] == t.size(d); --d) at[d] = 0;
  }
  return v;
}

template <class T>
Tensor tensor_of(const std::shared_ptr<Allocator>& allocator, const Shape& shape, const std::vector<T>& v) {
  check(numel(shape) == int64_t(v.size()), "{} values for {}", v.size(), to_string(shape));
  Tensor t(allocator, dtype_of<T>::value, shape);
  for (size_t i = 0; i < v.size(); ++i) t.data<T>()[i] = v[i];
  return t;
}

// The same values in the middle of a larger tensor with its dimensions in the other order: nothing is contiguous.
template <class T>
Tensor scattered(const std::shared_ptr<Allocator>& allocator, const Shape& shape, const std::vector<T>& v) {
  Shape larger;
  std::vector<int> order;
  for (int d = shape.dims() - 1; d >= 0; --d) larger.push_back(shape[d] + 2), order.push_back(d);
  Tensor t = Tensor(allocator, dtype_of<T>::value, larger);
  fill(t, 77);
  t = t.permute(order);
  for (int d = 0; d < shape.dims(); ++d) t = t.narrow(d, 1, shape[d]);
  copy(tensor_of(allocator, shape, v), t);
  return t;
}

// Notes collectives as text: "7: all_gather(tp) f32[8,8] 64 bytes", the launch first.
struct Log : Observer {
  std::vector<std::string> lines;
  std::vector<uint64_t> groups;
  std::vector<CollectiveKind> kinds;
  size_t redistributions = 0, asked_for = 0;

  void on_collective(const CollectiveEvent& e) override {
    std::string layouts;
    if (e.step)
      layouts =
          fmt::format(" {} to {}", to_string(e.step->from, e.mesh.shape()), to_string(e.step->to, e.mesh.shape()));
    lines.push_back(fmt::format("{}({}) {}{}{}{}, {} bytes", collective_name(e.kind), e.mesh.shape().names(e.axes),
                                name(e.dtype), to_string(e.shape), layouts,
                                e.peer < 0 ? "" : fmt::format(" peer {}", e.peer), e.bytes));
    groups.push_back(e.group);
    kinds.push_back(e.kind);
    asked_for += e.asked_for;
  }
  void on_redistribute(const RedistributeEvent& e) override {
    check(e.from.shape() == e.to.shape() && e.from.id() != e.to.id(),
          "a redistribution is a new value of the same shape");
    ++redistributions;
  }
};

// An observer while the scope is open.
struct Observing {
  Rank& rank;
  Observer& observer;
  Observing(Rank& r, Observer& o) : rank(r), observer(o) { rank.add(o); }
  ~Observing() { rank.remove(observer); }
};

}  // namespace dtensor::testing
