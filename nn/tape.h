// Tape: reverse-mode automatic differentiation by observing what a rank does.
#pragma once

#include <unordered_map>
#include <unordered_set>

#include "ops/call.h"

namespace dtensor::nn {

// Records while it exists: an op is recorded when one of its inputs is tracked and no NoGrad scope is open.
//
// Where gradients are reduced: a redistribution passes its gradient through untouched. When all contributions to a value
// made by an op have arrived (added as they are: Partial stays Partial), their sum is brought once, before the
// producer's gradient runs, to the value's own placement on each axis, Replicate where the value is Partial. A leaf's
// gradient stays as it arrives until the caller brings it somewhere. So every collective of a backward pass is the
// gradient of a value, and the counts are Megatron's.
//
// What is kept may be a recipe: the result of a redistribution with `remake` is dropped after the forward pass and made
// again from its source when a gradient asks.
class Tape : public Observer {
 public:
  explicit Tape(Rank& rank);
  ~Tape() override;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // Gradients of this value are wanted. Errors: a value that was computed from another watched one.
  void watch(const DistributedTensor& leaf);
  bool tracks(const DistributedTensor& x) const { return roots_.contains(x.id()); }

  // Adds the gradients of `loss` (one element, Replicate) to those of the leaves, and frees the record.
  // Errors: a loss that nothing watched leads to; a kept value that was written in place since.
  void backward(const DistributedTensor& loss);

  // As it arrived: possibly Partial. Undefined where none has.
  DistributedTensor gradient(const DistributedTensor& leaf) const;
  // Forgets the leaves' gradients, after an optimizer's step.
  void clear_gradients() { gradients_.clear(); }

  // Nodes of the record at this moment.
  size_t nodes() const { return nodes_.size(); }

  void on_call(const CallEvent& e) override;
  void on_redistribute(const RedistributeEvent& e) override;

 private:
  // A value kept for a gradient, or how to remake it.
  struct Kept {
    DistributedTensor value;   // or the source of the recipe
    uint32_t version = 0;
    bool remake = false;
    Layout layout;             // of the recipe's result
    DistributedTensor get(std::string_view op) const;
  };
  struct Value {
    uint64_t root = 0;         // 0: absent or not tracked
    const LocalSpec* spec = nullptr;
  };
  struct Node {
    const Op* op;
    Attributes attributes;
    std::vector<Value> inputs, outputs;
    std::vector<Kept> kept_inputs, kept_outputs;  // parallel to op->keeps
    std::string module, plan_line;
  };
  struct Recipe {
    DistributedTensor source;
    Layout layout;
  };
  class NodeGradient;

  uint64_t root_of(const DistributedTensor* x) const;
  Kept keep(const DistributedTensor& x) const;
  void run(Node& node);
  void contribute(uint64_t root, DistributedTensor gradient);
  void forget();  // all but the leaves and their gradients

  Rank& rank_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, uint64_t> roots_;       // tracked values; a redistributed one's root is its source's
  std::unordered_map<uint64_t, Recipe> recipes_;       // by the id of the result
  std::unordered_set<uint64_t> leaves_;
  std::unordered_map<uint64_t, DistributedTensor> pending_, gradients_;  // by root
};

}  // namespace dtensor::nn
