#include "ops/call.h"

#include <array>
#include <unordered_map>

#include "dtensor/local/inline_vector.h"
#include "dtensor/redistribute.h"
#include "ops/cpu/gemm.h"
#include "ops/cuda/kernels.h"

namespace dtensor {

const Context::FactorRange& Context::find(char factor) const {
  for (const FactorRange& f : factors_)
    if (f.name == factor) return f;
  fail("[{}] the kernel asks for factor {}, which the rule does not have", op, factor);
}

int64_t Context::leaves(std::string_view factors) const {
  int64_t local = 1, global = 1;
  for (const FactorRange& f : factors_)
    if (factors.find(f.name) != std::string_view::npos) local *= f.range.size(), global *= f.size;
  if (factors.find(batch_factor) != std::string_view::npos) global *= micro_batches;
  // At least 8 leaves of the whole, so that 2, 4 and 8 equal parts are subtrees even of a short sum.
  int64_t all = std::max<int64_t>(8, cpu::leaves(global));
  if (local == 0 || global % local) return cpu::leaves(local);
  int64_t parts = global / local;
  bool subtree = (parts & (parts - 1)) == 0 && parts <= all;
  return subtree ? all / parts : cpu::leaves(local);
}

DType same_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&, int) {
  const TensorSpec* first = nullptr;
  for (const TensorSpec* in : inputs) {
    if (!in) continue;
    if (!first) first = in;
    check(in->dtype == first->dtype, "[{}] element types differ: {}{} and {}{}; use cast()", op, name(first->dtype),
          to_string(first->shape), name(in->dtype), to_string(in->shape));
  }
  return first ? first->dtype : DType::f32;
}

BoundRule bind_rule(const Op& op, std::span<const Shape* const> inputs, const Attributes& attributes, DType dtype) {
  Rule rule = op.rule.function() ? op.rule.function()(inputs, attributes) : Rule{std::string(op.rule.literal())};
  if (rule.linear.empty()) rule.linear = op.linear;
  if (rule.added.empty()) rule.added = op.added;
  if (rule.monotone.empty()) rule.monotone = op.monotone;
  if (rule.passes.empty()) rule.passes = op.passes;
  if (rule.moves.empty()) rule.moves = op.moves;
  if (rule.reduce.empty()) rule.reduce = op.reduce;
  if (op.wraps && dtype == DType::i64) {  // the identity of the minimum plus 1 is the smallest of all
    rule.monotone.clear();
    std::erase_if(rule.passes, [](const Pass& p) { return p.from == Reduce::max || p.from == Reduce::min; });
  }
  return BoundRule(op.name, std::move(rule), inputs);
}

namespace {

constexpr size_t max_operands = 64, max_outputs = 64;

// What was decided for a call: found by op, interned input specs, attributes and wanted layout.
struct Decision {
  const Op* op;
  Kernel kernel;              // null on meta
  std::vector<uint64_t> ids;  // of the inputs' specs, 0 where absent
  Attributes attributes;
  uint64_t wanted;

  std::vector<Layout> inputs;
  uint64_t moves = 0;  // bit i: input i is brought to another layout
  std::vector<const LocalSpec*> outputs;
  std::vector<Context::FactorRange> factors;
  char batch_factor = 0;
};

struct OpsState {
  std::unordered_multimap<uint64_t, std::unique_ptr<Decision>> decisions;
  std::vector<cpu::Scratch> scratch;
  std::shared_ptr<cuda::Workspace> workspace;
};

OpsState& state_of(Rank& rank) {
  if (!rank.ops_state) {
    auto state = std::make_shared<OpsState>();
    state->scratch = std::vector<cpu::Scratch>(size_t(rank.pool().size()));
    if (rank.device() == Device::cuda) state->workspace = std::make_shared<cuda::Workspace>(rank.allocator());
    rank.ops_state = std::move(state);
  }
  return *static_cast<OpsState*>(rank.ops_state.get());
}

// Where there is none, a call of it is an error; not already the decision, which is also made on meta.
Kernel kernel_of(const Op& op, Device device) {
  if (device != Device::cuda || op.view) return op.cpu;
  return op.cuda ? op.cuda : cuda::find_kernel(op.name);
}

constexpr uint64_t nothing_wanted = ~uint64_t(0);

std::unique_ptr<Decision> decide(const Op& op, const DeviceMesh& mesh, std::span<const DistributedTensor* const> inputs,
                                 const Attributes& attributes, const CallOptions& options) {
  std::array<const Shape*, max_operands> shapes{};
  std::array<const TensorSpec*, max_operands> specs{};
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i]) specs[i] = &inputs[i]->spec(), shapes[i] = &specs[i]->shape;
  auto first = std::find_if(inputs.begin(), inputs.end(), [](const DistributedTensor* x) { return x != nullptr; });
  BoundRule rule = bind_rule(op, std::span(shapes.data(), inputs.size()), attributes, (*first)->dtype());
  std::span<const TensorSpec* const> in(specs.data(), inputs.size());
  Layout wanted = options.wanted ? strip_narrow_axes(mesh.shape(), *options.wanted) : Layout();
  const Layout* wanted_list[] = {options.wanted ? &wanted : nullptr};
  Choice choice = choose({rule, mesh.shape(), in, wanted_list, {}});
  if (op.stays && choice.bytes) {
    std::string need;
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i] && inputs[i]->layout() != choice.inputs[i]) need = to_string(choice.inputs[i], mesh.shape());
    fail(
        "[{}] {} ({}) cannot keep its sharding on mesh {}: the sharded dimension is not the leading one of its group, "
        "or "
        "the ranks do not divide it; redistribute to {} first",
        op.name, to_string(*inputs[0]), attributes.to_string(), to_string(mesh.shape()), need);
  }
  auto d = std::make_unique<Decision>();
  d->op = &op;
  d->kernel = kernel_of(op, mesh.rank_state().device());
  d->attributes = attributes;
  d->wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  d->inputs = choice.inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    d->ids.push_back(inputs[i] ? inputs[i]->spec().id : 0);
    if (inputs[i] && inputs[i]->layout() != choice.inputs[i]) d->moves |= uint64_t(1) << i;
  }
  check(rule.outputs().size() <= max_outputs, "[{}] more than {} outputs", op.name, max_outputs);
  for (size_t o = 0; o < rule.outputs().size(); ++o)
    d->outputs.push_back(
        mesh.intern({op.types(op.name, in, attributes, int(o)), rule.outputs()[o].shape, choice.outputs[o]}));
  for (const Operand& operand : rule.inputs()) {
    if (!operand.present) continue;
    if (operand.shape.dims() && operand.leading[0] >= 0)
      d->batch_factor = rule.factors()[size_t(operand.leading[0])].name;
    break;
  }
  for (size_t f = 0; f < rule.factors().size(); ++f) {
    const Factor& factor = rule.factors()[f];
    d->factors.push_back(
        {factor.name, local_range(mesh.shape(), factor.size, choice.factors[f], mesh.rank()), factor.size});
  }
  return d;
}

const Decision& find_decision(OpsState& state, const Op& op, const DeviceMesh& mesh,
                              std::span<const DistributedTensor* const> inputs, const Attributes& attributes,
                              const CallOptions& options) {
  uint64_t wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  uint64_t h =
      reinterpret_cast<uintptr_t>(&op) ^ (attributes.empty() ? 0 : attributes.hash()) ^ wanted * 0x9e3779b97f4a7c15u;
  for (const DistributedTensor* in : inputs) h = (h ^ (in ? in->spec().id : 0)) * 0x9e3779b97f4a7c15u, h ^= h >> 32;
  auto [it, end] = state.decisions.equal_range(h);
  for (; it != end; ++it) {
    const Decision& d = *it->second;
    bool same = d.op == &op && d.wanted == wanted && d.ids.size() == inputs.size();
    for (size_t i = 0; same && i < inputs.size(); ++i) same = d.ids[i] == (inputs[i] ? inputs[i]->spec().id : 0);
    if (same && d.attributes == attributes) return d;
  }
  return *state.decisions.emplace(h, decide(op, mesh, inputs, attributes, options))->second;
}

void run_kernel(const Op& op, Rank& rank, OpsState& state, const Decision& d,
                std::span<const DistributedTensor* const> used, std::span<Tensor> locals, bool accumulate) {
  check(d.kernel, "[{}] has no kernel for {}", op.name, name(rank.device()));
  InlineVector<Tensor, max_operands> in;
  for (const DistributedTensor* x : used) {
    if (!x)
      in.emplace_back();
    else if (op.strided)
      in.emplace_back(x->local());
    else
      in.emplace_back(x->local().contiguous());
  }
  Context context(op.name, d.attributes, d.factors, rank.pool(), state.scratch, rank.allocator(),
                  state.workspace.get());
  context.accumulate = accumulate, context.tf32 = rank.tf32;
  context.batch_factor = d.batch_factor, context.micro_batches = rank.micro_batches;
  d.kernel(context, std::span<const Tensor>(in.data(), in.size()), locals);
  for (size_t o = 0; o < locals.size(); ++o)
    if (locals[o].shape() != d.outputs[o]->local_shape)
      fail("[{}] the kernel left output {} with shape {}, not {}", op.name, o, to_string(locals[o].shape()),
           to_string(d.outputs[o]->local_shape));
}

// Brings the inputs that the decision moves to their layouts, all in as few launches as possible.
void bring(const Op& op, Rank& rank, const Decision& d, std::span<const DistributedTensor*> used,
           std::vector<DistributedTensor>& moved) {
  LabelScope label(rank, Label::Kind::op, std::string(op.name));
  std::vector<Layout> to;
  for (size_t i = 0; i < used.size(); ++i)
    if (d.moves >> i & 1) moved.push_back(*used[i]), to.push_back(d.inputs[i]);
  moved = redistribute(moved, to, {.asked_for = false});
  size_t next = 0;
  for (size_t i = 0; i < used.size(); ++i)
    if (d.moves >> i & 1) used[i] = &moved[next++];
}

std::vector<DistributedTensor> run_composite(const Op& op, Rank& rank, std::span<const DistributedTensor* const> inputs,
                                             const Attributes& attributes) {
  NoGrad scope(rank);
  LabelScope label(rank, Label::Kind::op, std::string(op.name));
  return op.composite(inputs, attributes);
}

// Whether a kernel can add an output of this specification to the value.
bool may_take(const DistributedTensor* into, const LocalSpec& output) {
  return into && into->defined() && into->unique() && &into->spec() == &output && into->local().is_contiguous();
}

// Runs the call; outputs are given to `take(index, tensor)`.
template <class Make>
void dispatch(const Op& op, std::span<const DistributedTensor* const> given, const Attributes& attributes,
              const CallOptions& options, Make result) {
  check(given.size() <= max_operands, "[{}] {} operands; at most {} are supported", op.name, given.size(),
        max_operands);
  std::array<const DistributedTensor*, max_operands> inputs, used;
  std::fill_n(inputs.begin(), given.size(), nullptr);
  const DistributedTensor* first = nullptr;
  bool meta = false;
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i] || !given[i]->defined()) continue;
    inputs[i] = given[i];
    if (!first)
      first = given[i];
    else if (!(given[i]->mesh() == first->mesh()))
      fail("[{}] operands on two meshes: {} and {}; a model's tensors all live on one mesh", op.name,
           to_string(first->mesh().shape()), to_string(given[i]->mesh().shape()));
    meta |= given[i]->is_meta();
  }
  check(first, "[{}] all operands are absent", op.name);
  std::span<const DistributedTensor* const> in(inputs.data(), given.size());
  const DeviceMesh& mesh = first->mesh();
  Rank& rank = mesh.rank_state();

  if (op.composite) {
    std::vector<DistributedTensor> outputs = run_composite(op, rank, in, attributes);
    rank.notify([&](Observer& o) { o.on_call({op, attributes, in, in, outputs}); });
    result(std::span(outputs));
    return;
  }

  OpsState& state = state_of(rank);
  const Decision& d = find_decision(state, op, mesh, in, attributes, options);
  std::vector<DistributedTensor> moved;
  std::copy_n(inputs.begin(), given.size(), used.begin());
  if (d.moves) bring(op, rank, d, std::span(used.data(), given.size()), moved);
  std::span<const DistributedTensor* const> ready(used.data(), given.size());

  InlineVector<Tensor, max_outputs> locals;
  Device device = meta || op.view ? Device::meta : rank.device();
  bool accumulate = op.accumulates && may_take(options.into, *d.outputs[0]);
  for (const LocalSpec* spec : d.outputs)
    if (accumulate && locals.size() == 0)
      locals.emplace_back(options.into->local_for_writing());
    else
      locals.emplace_back(rank.allocator(), spec->dtype, spec->local_shape, device);
  if (!meta) run_kernel(op, rank, state, d, ready, std::span(locals.data(), locals.size()), accumulate);

  InlineVector<DistributedTensor, max_outputs> outputs;
  for (size_t o = 0; o < locals.size(); ++o)
    if (accumulate && o == 0)
      outputs.emplace_back(*options.into);
    else
      outputs.emplace_back(DistributedTensor::empty(mesh, d.outputs[o], std::move(locals[o])));
  std::span<DistributedTensor> out(outputs.data(), outputs.size());
  rank.notify([&](Observer& o) { o.on_call({op, attributes, in, ready, out}); });
  result(out);
}

}  // namespace

std::vector<DistributedTensor> call_all(const Op& op, std::span<const DistributedTensor* const> inputs,
                                        const Attributes& attributes, const CallOptions& options) {
  std::vector<DistributedTensor> all;
  dispatch(op, inputs, attributes, options, [&](std::span<DistributedTensor> outputs) {
    all.assign(std::make_move_iterator(outputs.begin()), std::make_move_iterator(outputs.end()));
  });
  return all;
}

DistributedTensor call(const Op& op, std::initializer_list<const DistributedTensor*> inputs,
                       const Attributes& attributes, const CallOptions& options) {
  DistributedTensor first;
  dispatch(op, std::span(inputs.begin(), inputs.size()), attributes, options,
           [&](std::span<DistributedTensor> outputs) { first = std::move(outputs[0]); });
  return first;
}

size_t cached_calls(Rank& rank) { return state_of(rank).decisions.size(); }

cuda::Workspace& workspace_of(Rank& rank) {
  check(rank.device() == Device::cuda, "[workspace_of] rank {} is on {}, where kernels keep nothing; it is for cuda",
        rank.rank(), name(rank.device()));
  return *state_of(rank).workspace;
}

}  // namespace dtensor
