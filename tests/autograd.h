// A store and a record whose scope is open while it exists: what most tests need of both.
#pragma once

#include "nn/record.h"

namespace dtensor::testing {

struct Autograd {
  explicit Autograd(Rank& rank, const nn::RecordOptions& options = {})
      : store(rank), record(store, options), scope(record) {}
  void watch(const DistributedTensor& leaf) { store.watch(leaf); }
  void backward(const DistributedTensor& loss, const nn::BackwardOptions& options = {}) {
    record.backward(loss, options);
  }
  DistributedTensor gradient(const DistributedTensor& leaf) const { return store.gradient(leaf); }
  bool tracks(const DistributedTensor& x) const { return record.tracks(x); }
  size_t nodes() const { return record.nodes(); }
  operator nn::GradientStore&() { return store; }

  nn::GradientStore store;
  nn::Record record;
  nn::Record::Scope scope;
};

}  // namespace dtensor::testing
