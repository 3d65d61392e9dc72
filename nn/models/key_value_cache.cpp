#include "nn/models/key_value_cache.h"

#include <fmt/format.h>

#include <algorithm>

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "nn/module.h"
#include "ops/functions.h"

namespace dtensor::nn {

KeyValueCache::KeyValueCache(int64_t rows, int64_t capacity) : rows_(rows), capacity_(capacity) {
  check(rows >= 0 && capacity >= 0, "[KeyValueCache] {} rows of {} tokens: sizes are not negative", rows, capacity);
}

void KeyValueCache::begin_pass(const DeviceMesh& mesh, std::span<const int64_t> positions,
                               std::span<const int64_t> lengths) {
  check(int64_t(lengths.size()) == rows_ && (rows_ ? positions.size() % size_t(rows_) == 0 : positions.empty()),
        "[KeyValueCache] {} positions and {} lengths are not of {} rows", positions.size(), lengths.size(), rows_);
  auto within = [&](const char* what, std::span<const int64_t> values, int64_t end) {
    for (int64_t v : values)
      check(v >= 0 && v < end, "[KeyValueCache] a {} of {} does not fit into a capacity of {} tokens", what, v,
            capacity_);
  };
  within("position", positions, capacity_), within("length", lengths, capacity_ + 1);
  std::vector<int64_t> slots(positions.begin(), positions.end());
  int64_t each = rows_ ? int64_t(slots.size()) / rows_ : 0;
  for (size_t i = 0; i < slots.size(); ++i) slots[i] += int64_t(i) / each * capacity_;
  slots_ = DistributedTensor::distribute(Tensor::of<int64_t>({int64_t(slots.size())}, slots), mesh, Layout());
  lengths_ = DistributedTensor::distribute(Tensor::of<int64_t>({rows_}, lengths), mesh, Layout());
  begins_ = ends_.empty() ? std::vector<int64_t>(lengths.size()) : std::move(ends_);
  ends_.assign(lengths.begin(), lengths.end()), positions_.assign(positions.begin(), positions.end());
  fresh_.reset();
  longest_before_ = longest_;
  longest_ = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

const KeyValueCache::Fresh& KeyValueCache::fresh(const Module& module) {
  if (fresh_) return *fresh_;
  check(lengths_.defined(), "[{}] the cache has not begun a pass: call begin_pass", module.path());
  const DeviceMesh& mesh = lengths_.mesh();
  int64_t s = rows_ ? int64_t(positions_.size()) / rows_ : 0;
  std::vector<int64_t> counts;
  for (int64_t row = 0; row < rows_; ++row) {
    int64_t begin = begins_[size_t(row)];
    counts.push_back(std::max<int64_t>(0, ends_[size_t(row)] - begin));
    for (int64_t i = 0; i < counts.back(); ++i)
      check(i < s && positions_[size_t(row * s + i)] == begin + i,
            "[{}] row {} has {} tokens and goes on to {}, but new token {} of the pass {}: a state takes tokens in "
            "their order, so give all that are new, first in their row",
            module.path(), row, begin, ends_[size_t(row)], i,
            i < s ? fmt::format("has position {}", positions_[size_t(row * s + i)]) : "is missing");
  }
  DistributedTensor count = DistributedTensor::distribute(Tensor::of<int64_t>({rows_}, counts), mesh, Layout()),
                    columns = arange(mesh, TensorSpec{DType::i64, {s}, Layout()});
  fresh_ = {count, ops::ge(columns, ops::view(count, {rows_, 1}))};
  return *fresh_;
}

DistributedTensor KeyValueCache::write(DistributedTensor& stored, const Module& attention,
                                       const DistributedTensor& fresh) {
  check(slots_.defined() && fresh.size(0) * fresh.size(2) == slots_.size(0) && fresh.size(0) == rows_,
        "[{}] {} are not the keys of the pass that the cache of {} rows has begun", attention.path(), fresh, rows_);
  const DeviceMesh& mesh = fresh.mesh();
  Layout kept;
  kept.split[0] = fresh.layout().split[0], kept.split[1] = fresh.layout().split[1];
  Shape shape{rows_ * capacity_, fresh.size(1), fresh.size(3)};
  if (!stored.defined()) stored = zeros(mesh, TensorSpec{fresh.dtype(), shape, kept});
  // Where ranks have some of the rows, each gets the new tokens of all and keeps its own: a few elements, and no rank's
  // slots depend on the mesh.
  Layout everyone;
  everyone.split[2] = fresh.layout().split[1];
  DistributedTensor tokens = ops::transpose(fresh, 1, 2).redistribute(everyone, {.reason = "key/value cache"});
  ops::index_copy_(stored, 0, slots_, ops::reshape(tokens, {slots_.size(0), shape[1], shape[2]}));
  return ops::transpose(ops::view(stored, {rows_, capacity_, shape[1], shape[2]}), 1, 2);
}

std::pair<DistributedTensor, DistributedTensor> KeyValueCache::extend(const Module& attention,
                                                                      const DistributedTensor& keys,
                                                                      const DistributedTensor& values) {
  std::vector<DistributedTensor>& own = kept(attention);
  own.resize(2);
  return {write(own[0], attention, keys), write(own[1], attention, values)};
}

}  // namespace dtensor::nn
