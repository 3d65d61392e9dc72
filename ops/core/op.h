// Op: the card that says everything about one op. docs/adding-an-op.md walks through one.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "dtensor/distributed_tensor.h"
#include "ops/core/attributes.h"
#include "ops/core/function.h"
#include "ops/cpu/scratch.h"
#include "placement/rule.h"

namespace dtensor {

namespace cuda {
class Workspace;  // ops/cuda/kernels.h
}

// What a kernel knows besides its tensors: this rank's range of every factor of the rule, and where to work.
class Context {
 public:
  struct FactorRange {
    char name;
    Range range;   // of this rank
    int64_t size;  // global
  };

  Context(std::string_view op, const Attributes& attributes, std::span<const FactorRange> factors, ThreadPool& pool,
          std::vector<cpu::Scratch>& scratch, const std::shared_ptr<Allocator>& allocator,
          cuda::Workspace* workspace = nullptr)
      : op(op),
        attributes(attributes),
        pool(pool),
        allocator(allocator),
        factors_(factors),
        scratch_(scratch),
        workspace_(workspace) {}

  std::string_view op;
  const Attributes& attributes;
  ThreadPool& pool;
  const std::shared_ptr<Allocator>& allocator;
  bool accumulate = false;  // add to what output 0 has: only where the card says that it can
  bool tf32 = false;        // Rank::tf32
  // Dimension 0 of the first operand is the batch, and micro_batches of them make up a step's (Rank::micro_batches).
  char batch_factor = 0;
  int micro_batches = 1;

  Range range(char factor) const { return find(factor).range; }
  int64_t size(char factor) const { return find(factor).size; }
  cpu::Scratch& scratch(int worker) const { return scratch_[size_t(worker)]; }
  // On CUDA: the stream to launch on, and what kernels keep between calls (library handles, plans).
  CUstream_st* stream() const { return allocator->stream(); }
  cuda::Workspace& workspace() const { return *workspace_; }
  // The number of leaves of a sum over the product of `factors` (those absent count 1), so that the ranks' parts are
  // subtrees of one canonical tree: docs/architecture.md, the same bits. So are micro-batches' of a sum over the batch.
  // Never 0.
  int64_t leaves(std::string_view factors) const;
  // The same over all dimensions of "...".
  int64_t leaves_of_dots() const { return leaves("ABCDEFGH"); }

 private:
  const FactorRange& find(char factor) const;
  std::span<const FactorRange> factors_;
  std::vector<cpu::Scratch>& scratch_;
  cuda::Workspace* workspace_;
};

// Reads inputs, writes every element of outputs (allocated, contiguous). Absent inputs are undefined tensors. Inputs
// are contiguous unless the card is `strided`. A `view` card's kernel is given outputs of the right shapes without
// bytes, and puts its own in their place.
// Outputs that the card `writes` have the contents of their inputs.
using Kernel = void (*)(const Context&, std::span<const Tensor> inputs, std::span<Tensor> outputs);

// What a card's gradient function sees: what was kept, the outputs' gradients, and where the inputs' gradients go.
// It is written with ops, so a gradient needs no rule of its own.
class Gradient {
 public:
  virtual ~Gradient() = default;
  virtual const Attributes& attributes() const = 0;
  virtual const DistributedTensor& input(int i) const = 0;  // as the kernel saw it; must be among .keeps
  virtual const DistributedTensor& output(int i) const = 0;
  virtual const TensorSpec& input_spec(int i) const = 0;            // known for all inputs
  virtual const DistributedTensor& of_output(int i = 0) const = 0;  // undefined where nothing depends on output i
  // In which the gradient of input i is kept: that of the input, or f32 where it is the bf16 copy of a parameter.
  virtual DType dtype(int i) const { return input_spec(i).dtype; }
  virtual bool needs(int i) const = 0;            // whether anybody wants the gradient of input i
  virtual const Layout* wanted(int i) const = 0;  // the layout that the gradient of input i will be brought to
  // The sum of the gradients that arrived for input i before, for CallOptions::into: where a call added to it, set() is
  // not called. Null where there is none.
  virtual DistributedTensor* sum(int) const { return nullptr; }
  virtual void set(int i, DistributedTensor gradient) = 0;
};
using GradientFunction = void (*)(Gradient&);

using RuleFunction = Rule (*)(std::span<const Shape* const> inputs, const Attributes&);
// A literal, checked when it is compiled, or a function of shapes and attributes.
class RuleSource {
 public:
  consteval RuleSource(const char* text) : literal_(RuleText(text).text()) {}
  constexpr RuleSource(RuleFunction function) : function_(function) {}
  std::string_view literal() const { return literal_; }
  RuleFunction function() const { return function_; }

 private:
  std::string_view literal_ = {};
  RuleFunction function_ = nullptr;
};

// The element types of the outputs, from those of the inputs that are present. Errors: types that do not fit.
using TypeFunction = DType (*)(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&,
                               int output);
DType same_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&, int output);
// The same, of floating types.
DType floating_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&, int output);

// A composite is a function of ops and redistributions that a record holds as one node, with the card's gradient.
using Composite = std::vector<DistributedTensor> (*)(std::span<const DistributedTensor* const> inputs,
                                                     const Attributes&);

// An input of a sample call for the conformance test.
struct SampleInput {
  enum class Kind : uint8_t { normal, positive, index, boolean, absent };
  Shape shape = {};
  Kind kind = Kind::normal;
  int64_t bound = 0;  // indices are below it

  SampleInput(std::initializer_list<int64_t> s) : shape(s) {}
  SampleInput(Kind k, Shape s, int64_t bound = 0) : shape(s), kind(k), bound(bound) {}
};
struct Sample {
  std::vector<SampleInput> inputs;
  Attributes attributes = {};
};

// The inputs and outputs that a record holds on to for the gradient.
struct Keeps {
  std::vector<int> inputs = {}, outputs = {};
};

struct Op;

// Tells cards apart, whatever becomes of their addresses: each card, and each copy of one, has its own; but a lasting
// card is its card.
class OpIdentity {
 public:
  OpIdentity();
  OpIdentity(const OpIdentity&) : OpIdentity() {}
  OpIdentity& operator=(const OpIdentity&) { return *this = OpIdentity(); }
  // Nobody else's while somebody holds the lasting card.
  const void* key() const { return lasting_; }

 private:
  friend std::shared_ptr<const Op> lasting(const Op& card);
  struct Lasting;
  OpIdentity& operator=(OpIdentity&&) = default;
  std::shared_ptr<Lasting> owner_;  // null in the lasting card itself, which it owns
  Lasting* lasting_;
};

constexpr int any_input = -1;  // in Op::optional

namespace ops {
// Attributes: a number in place of an operand, as in add(x, 2).
struct Number {
  double value;
  static constexpr auto fields() { return std::tuple(field("value", &Number::value)); }
};
}  // namespace ops

// All that there is to say about one op. A card does not change once it was called; a copy of it is another card.
struct Op {
  std::string_view name;
  std::vector<ops::Function> functions = {};  // that call it: what users see
  RuleSource rule = RuleFunction(nullptr);
  std::vector<Pass> passes = {};  // see Rule
  std::vector<int> added = {};
  std::vector<Reduce> reduce = {};
  TypeFunction types = same_types;
  // Inputs that may be absent: a null pointer or an undefined tensor. Elsewhere both are errors.
  std::vector<int> optional = {};
  // Inputs that are a null pointer where a number among the attributes stands for them.
  std::vector<int> or_number = {};
  // Output o is input writes[o] itself, which the kernel writes in place (a key/value cache): its handle, with a new
  // version. Such an input is never moved; a layout that would have to be is an error.
  std::vector<int> writes = {};
  bool strided = false;      // the kernel takes any strides
  bool view = false;         // the output may show the input's storage, so the kernel makes it
  bool stays = false;        // a call that would have to communicate is an error
  bool wraps = false;        // integers wrap around, so a maximum or minimum of them does not pass
  bool accumulates = false;  // kernels can add output 0 to what it has (Context::accumulate)
  // CUDA kernels whose output may be f32 where operands 0 and 1 are bf16. Those of other cards are then given f32
  // copies.
  bool f32_sums = false;
  Kernel cpu = nullptr;   // of a view, which moves no bytes itself, on every device
  Kernel cuda = nullptr;  // of a program's own card; those of the library's are in the tables of ops/cuda/
  Composite composite = nullptr;
  GradientFunction gradient = nullptr;
  Keeps keeps = {};
  std::vector<Sample> sample = {};
  OpIdentity identity = {};
};

// A copy of the card, but for its samples, that lives as long as somebody holds it; the same for all who ask.
std::shared_ptr<const Op> lasting(const Op& card);

// The rule of one call whose first present input has this element type. The rule function sees the key of the
// attributes, so nothing can depend on a run-time value.
BoundRule bind_rule(const Op& op, std::span<const Shape* const> inputs, const Attributes& attributes, DType dtype);

}  // namespace dtensor
