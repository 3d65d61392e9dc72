#include "nn/train/value_hash.h"

#include <cstring>

#include "dtensor/redistribute.h"

namespace dtensor::nn {
namespace {

uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

struct Sum {
  uint64_t low = 0, high = 0;
  void add(uint64_t name, uint64_t index, uint64_t bits) {
    uint64_t h = mix(mix(name + index * 0x9e3779b97f4a7c15u) ^ bits);
    low += h, high += mix(h + 0x2545f4914f6cdd1du);
  }
};

uint64_t hash_of(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325;  // FNV-1a
  for (char c : name) h = (h ^ uint8_t(c)) * 0x100000001b3;
  return h;
}

// Of those that hold the same part, the first adds it.
bool is_first_holder(const DistributedTensor& x) {
  const DeviceMesh& mesh = x.mesh();
  for (int axis = 0; axis < mesh.shape().axes(); ++axis)
    if (!has(x.layout().sharded(), axis) && mesh.coordinate(axis) != 0) return false;
  return true;
}

// This rank's part, row by row.
void add(Sum& sum, const std::string& name, const DistributedTensor& x) {
  check(!x.is_meta() && x.layout().partial == 0, "[value_hash] {} is {}: it has no bits to be compared", name, x);
  if (!is_first_holder(x)) return;
  Tensor part = x.local().contiguous().cpu();
  const Box& box = x.spec().box;
  uint64_t key = hash_of(name);
  auto item = size_t(itemsize(x.dtype()));
  const std::byte* at = part.bytes_data();
  int64_t row = x.dims() ? box[x.dims() - 1].size() : 1, rows = row ? part.numel() / row : 0;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t index = x.dims() ? box[x.dims() - 1].begin : 0, stride = x.dims() ? x.size(x.dims() - 1) : 1;
    for (int64_t d = x.dims() - 2, left = r; d >= 0; --d) {
      int64_t size = box[int(d)].size();
      index += (box[int(d)].begin + left % size) * stride;
      left /= size, stride *= x.size(int(d));
    }
    for (int64_t i = 0; i < row; ++i, at += item) {
      uint64_t bits = 0;
      std::memcpy(&bits, at, item);
      sum.add(key, uint64_t(index + i), bits);
    }
  }
}

}  // namespace

std::string value_hash(const DeviceMesh& mesh, const std::vector<NamedValue>& values) {
  Sum sum;
  for (const NamedValue& v : values) add(sum, v.name, v.value);
  Rank& rank = mesh.rank_state();
  Tensor here = Tensor::of<int64_t>({2}, {int64_t(sum.low), int64_t(sum.high)}).to(rank.allocator());
  Layout partial;
  partial.partial = mesh.shape().all();
  Tensor all = DistributedTensor::from_local(here, mesh, partial, here.shape())
                   .redistribute(Layout(), {.reason = "hash"})
                   .local()
                   .cpu();
  return fmt::format("{:016x}{:016x}", uint64_t(all.data<int64_t>()[1]), uint64_t(all.data<int64_t>()[0]));
}

}  // namespace dtensor::nn
