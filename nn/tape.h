// Tape: reverse-mode automatic differentiation by observing what a rank does.
#pragma once

#include <optional>
#include <unordered_map>

#include "dtensor/redistribute.h"
#include "ops/call.h"

namespace dtensor::nn {

// Records while it exists: an op is recorded when one of its inputs is tracked and no NoGrad scope is open.
//
// Where gradients are reduced: a redistribution passes its gradient through untouched. When all contributions to a
// value made by an op have arrived (added as they are: Partial stays Partial), their sum is brought once, before the
// producer's gradient runs, to the value's own placement on each axis, Replicate where the value is Partial. A leaf's
// gradient stays as it arrives until the caller brings it somewhere. So every collective of a backward pass is the
// gradient of a value, and the counts are Megatron's.
//
// What is kept may be a recipe: the result of a redistribution with `remake` is dropped after the forward pass and made
// again from its source when a gradient asks; tensors that were redistributed by one call are remade by one, and live
// until the last gradient that needs one of them.
class Tape : public Observer {
 public:
  explicit Tape(Rank& rank);
  ~Tape() override;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // Gradients of this value are wanted, of its element type, or of another floating one: what arrives is cast to it
  // before it is added. Errors: a value that was computed from another watched one.
  void watch(const DistributedTensor& leaf) { watch(leaf, leaf.dtype()); }
  void watch(const DistributedTensor& leaf, DType gradient);
  // The same for several, whose gradients are brought to the leaves' own layouts in one launch, as soon as the backward
  // pass has passed the last use of any of them. `names` are for logs, `gradient` is their element type, the
  // leaves' own where it is not given.
  void watch_together(const std::vector<DistributedTensor>& leaves, const std::vector<std::string>& names,
                      std::optional<DType> gradient = {});
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
  // How to remake the results of one redistribution, and the results while somebody needs them.
  struct Recipe {
    std::vector<DistributedTensor> sources, results;
    std::vector<Layout> layouts;
  };
  // A value kept for a gradient, or its recipe.
  struct Kept {
    DistributedTensor value;  // or the recipe's source
    uint32_t version = 0;
    std::shared_ptr<Recipe> recipe;
    size_t index = 0;  // in the recipe
    DistributedTensor get(std::string_view op) const;
  };
  // Leaves whose gradients are reduced together.
  struct Group {
    std::vector<DistributedTensor> leaves;
    std::vector<std::string> reasons;
    int uses = 0;  // recorded inputs that the backward pass has not passed yet
  };
  struct Value {
    uint64_t root = 0;  // 0: absent or not tracked
    SpecHandle spec;
  };
  struct Node {
    std::shared_ptr<const Op> op;
    Attributes attributes;
    std::vector<Value> inputs, outputs;
    std::vector<Kept> kept_inputs, kept_outputs;  // parallel to op->keeps
    std::string module, plan_line;
  };
  class NodeGradient;

  uint64_t root_of(const DistributedTensor* x) const;
  Kept keep(const DistributedTensor& x) const;
  void run(Node& node);
  void contribute(uint64_t root, DistributedTensor gradient);
  void count_uses(const Node& node, int change);
  void begin_reduce(const Group& group);
  void finish_reduce();
  void forget();  // all but the leaves and their gradients

  Rank& rank_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, uint64_t> roots_;  // tracked values; a redistributed one's root is its source's
  std::unordered_map<uint64_t, std::pair<std::shared_ptr<Recipe>, size_t>> recipes_;  // by the id of the result
  std::shared_ptr<Recipe> last_recipe_;  // of the batch that is being reported
  uint64_t last_batch_ = 0;
  std::unordered_map<uint64_t, DType> leaves_;  // and the element types of their gradients
  std::vector<Group> groups_;
  // The gradients that are being reduced while the backward pass goes on, by leaf.
  Redistribution reducing_;
  std::vector<uint64_t> reduced_leaves_;
  std::unordered_map<uint64_t, size_t> group_of_;                        // by leaf
  std::unordered_map<uint64_t, DistributedTensor> pending_, gradients_;  // by root
};

}  // namespace dtensor::nn
