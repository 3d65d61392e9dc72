// Record: one forward pass, as a rank's calls went by, and its reverse-mode automatic differentiation.
#pragma once

#include <memory>
#include <unordered_map>

#include "nn/gradient_store.h"
#include "ops/core/call.h"

namespace dtensor::nn {

struct RecordOptions {
  // How many records' gradients are added in the store for one step: sums over a batch's rows are then the same bits as
  // those of one record of all rows (docs/architecture.md, the same bits).
  int micro_batches = 1;
};

struct BackwardOptions {
  // What gradients are wanted of: all; or first the inputs', then the weights', as zero-bubble pipelines do. Values
  // that no watched input leads to wait for the weights' pass.
  enum class Of : uint8_t { all, inputs, weights };
  Of of = Of::all;
  // The last micro-batch: groups of leaves are reduced while the pass goes on. If all passes reduce, gradients need
  // the least memory and the most communication.
  bool reduce = true;
};

// Holds one forward pass: a micro-batch, or that of a pipeline's stage. It records while a Scope of it is open: a call
// of which an operand is tracked. Several may be alive on a rank; a call is recorded by the innermost scope's, and by
// none where a NoGrad scope is open. Destroying it frees all it keeps.
//
// Where gradients are reduced: a redistribution passes its gradient through untouched. When all contributions to a
// value made by an op have arrived (added as they are: Partial stays Partial), their sum is brought once, before the
// producer's gradient runs, to the value's own placement on each axis, Replicate where the value is Partial. A leaf's
// gradient stays as it arrives until the store reduces it. So every collective of a backward pass is the gradient of a
// value, and the counts are Megatron's.
//
// What is kept may be a recipe: the result of a redistribution with `remake`, or of what Rank::keep_policy does not
// keep, is dropped after the forward pass and made again when a gradient asks, by the same redistribution or call;
// tensors that were redistributed by one call are remade by one. A result that was remade lives until the last
// gradient that needs it. While one redistribution's results are used, the one that is asked for next comes already,
// where its sources are there.
class Record : public Observer {
 public:
  explicit Record(GradientStore& store, const RecordOptions& options = {});
  ~Record() override;
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;

  class Scope {
   public:
    explicit Scope(Record& record);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Rank& rank_;
    Observer* outer_;
    KeepPolicy* outer_policy_;
    int outer_micro_batches_;
  };

  // An input of the forward pass, as what a stage receives: its gradient is wanted. Errors: a value that was computed
  // in this record from another watched one.
  void watch(const DistributedTensor& input);
  bool tracks(const DistributedTensor& x) const { return x.defined() && find(x.id()).root != 0; }

  // Adds the gradients of the leaves to the store and frees the record, as far as no weights' pass is to come.
  // `gradients` are those of `outputs`, of the same shapes and types; where one is undefined nothing depends on its
  // output. After an error the store is as it was and the record is empty. Errors: an output that nothing watched leads
  // to; a value that was written in place since it was recorded.
  void backward(const std::vector<DistributedTensor>& outputs, const std::vector<DistributedTensor>& gradients,
                const BackwardOptions& options = {});
  // Of a loss: one element, whose gradient is 1.
  void backward(const DistributedTensor& loss, const BackwardOptions& options = {});
  // The second pass, after one of the inputs alone.
  void backward_weights(bool reduce = true);

  // Of a watched input, as it arrived: possibly Partial. Undefined where none has.
  DistributedTensor gradient(const DistributedTensor& input) const;

  size_t nodes() const { return nodes_.size(); }

  void on_call(const CallEvent& e) override;
  void on_redistribute(const RedistributeEvent& e) override;
  void on_keep(const DistributedTensor& x) override { recipes_.erase(x.id()); }

 private:
  class Recipe;
  class Redistributed;
  class Called;
  // A value kept for a gradient, or how to make it.
  struct Kept {
    DistributedTensor value;  // undefined where there is a recipe
    uint32_t version = 0;
    std::shared_ptr<Recipe> recipe = nullptr;
    size_t index = 0;  // of the recipe's results
    bool defined() const { return value.defined() || recipe; }
    DistributedTensor get(std::string_view op) const;
  };
  // What a value's gradient is added to.
  struct Tracked {
    uint64_t root = 0;  // the id of the value made by an op, or watched, that this one is the same as; 0: not tracked
    uint32_t version = 0;     // of this value when it was seen first
    bool from_input = false;  // a watched input leads to it, not leaves alone
    GradientStore::Leaf* leaf = nullptr;
  };
  struct Value {
    Tracked tracked;
    SpecHandle spec;
  };
  struct Node {
    std::shared_ptr<const Op> op;
    Attributes attributes;
    const std::string *module, *plan_line;
    size_t input_count;
    std::vector<Value> values = {};                  // the inputs, then the outputs
    std::vector<Kept> kept = {};                     // parallel to op->keeps: inputs, then outputs
    std::vector<DistributedTensor> of_outputs = {};  // between the pass of the inputs and that of the weights

    std::span<const Value> inputs() const { return std::span(values).first(input_count); }
    std::span<const Value> outputs() const { return std::span(values).subspan(input_count); }
  };
  class NodeGradient;
  using Of = BackwardOptions::Of;

  Tracked find(uint64_t id) const;
  Tracked track(const DistributedTensor* x);
  void check_version(const DistributedTensor& x, const Tracked& seen) const;
  Kept keep(const DistributedTensor& x);
  void begin_next_remake();
  void run_all(GradientStore::Pass& pass, Of of);
  bool run(Node& node, GradientStore::Pass& pass, Of of);
  void contribute(const Tracked& to, DistributedTensor gradient, GradientStore::Pass& pass);
  DistributedTensor& sum(const Tracked& of, GradientStore::Pass& pass);
  const std::string* label(Label::Kind kind, const std::string*& last);
  template <class F>
  void guarded(F f);
  void start();
  void forget();  // all but the gradients of inputs

  GradientStore& store_;
  Rank& rank_;
  RecordOptions options_;
  std::deque<Node> nodes_;
  std::unordered_map<uint64_t, Tracked> tracked_;  // by the value's id; leaves are in the store until they are used
  std::unordered_map<uint64_t, std::pair<std::shared_ptr<Recipe>, size_t>> recipes_;  // by the id of the result
  std::shared_ptr<Redistributed> last_recipe_;  // of the batch that is being reported
  uint64_t last_batch_ = 0;
  // What gradients will ask for, the last one first: of the nodes in their order.
  std::vector<std::weak_ptr<Redistributed>> to_remake_;
  std::deque<std::string> labels_;  // of nodes, which mostly have those of the one before
  const std::string *last_module_ = nullptr, *last_plan_line_ = nullptr;
  std::vector<int> uses_;                                         // of the store's groups, by the recorded calls
  std::unordered_map<uint64_t, DistributedTensor> inputs_;        // watched ones, and their gradients
  std::unordered_map<uint64_t, DistributedTensor> pending_;       // gradients on their way, by root
  std::vector<std::pair<Tracked, DistributedTensor>> of_leaves_;  // given with the inputs' pass for the weights'
  bool finished_ = false;                                         // the gradients of inputs are those of the last pass
};

}  // namespace dtensor::nn
