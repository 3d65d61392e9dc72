#include "ops/call.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <unordered_map>

#include "dtensor/local/inline_vector.h"
#include "dtensor/redistribute.h"
#include "ops/all.h"
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

struct OpIdentity::Lasting {
  std::once_flag made;  // by the thread of any rank
  std::unique_ptr<Op> card;
};

OpIdentity::OpIdentity() : lasting_(std::make_shared<Lasting>()) {}

std::shared_ptr<const Op> lasting(const Op& card) {
  OpIdentity::Lasting& l = *card.identity.lasting_;
  std::call_once(l.made, [&] {
    l.card = std::make_unique<Op>(card);
    l.card->sample.clear();
  });
  return {card.identity.lasting_, l.card.get()};
}

BoundRule bind_rule(const Op& op, std::span<const Shape* const> inputs, const Attributes& attributes, DType dtype) {
  Rule rule = op.rule.function() ? op.rule.function()(inputs, attributes.key(op.run_time))
                                 : Rule{std::string(op.rule.literal())};
  if (rule.passes.empty()) rule.passes = op.passes;
  if (rule.added.empty()) rule.added = op.added;
  if (rule.reduce.empty()) rule.reduce = op.reduce;
  if (op.wraps && dtype == DType::i64)  // the identity of the minimum plus 1 is the smallest of all
    for (Pass& p : rule.passes)
      std::erase_if(p.reductions, [](auto r) { return r.first == Reduce::max || r.first == Reduce::min; });
  return BoundRule(op.name, std::move(rule), inputs);
}

namespace {

constexpr size_t max_operands = 64, max_outputs = 64;

// What was decided for a call: found by card, interned input specs, key of the attributes and wanted layout.
struct Decision {
  std::shared_ptr<const Op> card;  // keeps its identity from being another card's
  const void* identity;
  Kernel kernel;              // null where there is none, and on meta
  std::vector<uint64_t> ids;  // of the inputs' specs, 0 where absent
  Attributes key;
  uint64_t wanted;

  std::vector<Layout> inputs;
  uint64_t moves = 0;  // bit i: input i is brought to another layout
  std::vector<SpecHandle> outputs;
  std::vector<Context::FactorRange> factors;
  char batch_factor = 0;

  uint64_t last_use = 0;  // the number of the call
  int running = 0;        // calls that need it now: an observer may make calls
};

struct OpsState {
  std::unordered_multimap<uint64_t, std::unique_ptr<Decision>> decisions;
  uint64_t calls = 0;
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

// Where there is none, a call of it is an error; not already the decision, which is also made on meta. A card that only
// bears the name of one of the library's does not get that one's kernel.
Kernel kernel_of(const Op& op, Device device) {
  if (device != Device::cuda || op.view) return op.cpu;
  if (op.cuda) return op.cuda;
  std::span<const Op* const> library = ops::all();
  return std::find(library.begin(), library.end(), &op) == library.end() ? nullptr : cuda::find_kernel(op.name);
}

constexpr uint64_t nothing_wanted = ~uint64_t(0);

// The best of the choices that leave what is written in place where it is.
Choice choose_in_place(const Op& op, const Propagation& p) {
  std::vector<Choice> choices = all_choices(p);
  auto stays = [&](const Choice& c) {
    for (size_t o = 0; o < op.writes.size(); ++o) {
      auto i = size_t(op.writes[o]);
      if (c.inputs[i] != p.inputs[i]->layout || c.outputs[o] != p.inputs[i]->layout) return false;
    }
    return true;
  };
  auto it = std::find_if(choices.begin(), choices.end(), stays);
  if (it != choices.end()) return std::move(*it);
  auto i = size_t(op.writes[0]);
  fail("[{}] operand {} is written in place, which {} cannot be; redistribute it to {} first", op.name, i,
       to_string(*p.inputs[i], p.mesh), to_string(choices[0].inputs[i], p.mesh));
}

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
  Propagation propagation{rule, mesh.shape(), in, wanted_list, {}};
  Choice choice = op.writes.empty() ? choose(propagation) : choose_in_place(op, propagation);
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
  d->card = lasting(op);
  d->identity = op.identity.key();
  d->kernel = kernel_of(op, mesh.rank_state().device());
  d->key = attributes.key(op.run_time);
  d->wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  d->inputs = choice.inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    d->ids.push_back(inputs[i] ? inputs[i]->spec().id : 0);
    if (inputs[i] && inputs[i]->layout() != choice.inputs[i]) d->moves |= uint64_t(1) << i;
  }
  check(rule.outputs().size() <= max_outputs, "[{}] more than {} outputs", op.name, max_outputs);
  for (size_t o = 0; o < rule.outputs().size(); ++o)
    d->outputs.push_back(
        mesh.intern({op.types(op.name, in, d->key, int(o)), rule.outputs()[o].shape, choice.outputs[o]}));
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

// The half used least recently goes, but for what is running.
void forget_half(OpsState& state) {
  std::vector<uint64_t> uses;
  for (const auto& [hash, d] : state.decisions) uses.push_back(d->last_use);
  auto middle = uses.begin() + long(uses.size() / 2);
  std::nth_element(uses.begin(), middle, uses.end());
  std::erase_if(state.decisions, [&](const auto& entry) {
    const Decision& d = *entry.second;
    return d.last_use < *middle && !d.running;
  });
}

Decision& find_decision(OpsState& state, const Op& op, const DeviceMesh& mesh,
                        std::span<const DistributedTensor* const> inputs, const Attributes& attributes,
                        const CallOptions& options) {
  uint64_t wanted = options.wanted ? options.wanted->code() : nothing_wanted;
  uint64_t h = reinterpret_cast<uintptr_t>(op.identity.key()) ^
               (attributes.empty() ? 0 : attributes.key_hash(op.run_time)) ^ wanted * 0x9e3779b97f4a7c15u;
  for (const DistributedTensor* in : inputs) h = (h ^ (in ? in->spec().id : 0)) * 0x9e3779b97f4a7c15u, h ^= h >> 32;
  auto [it, end] = state.decisions.equal_range(h);
  for (; it != end; ++it) {
    Decision& d = *it->second;
    bool same = d.identity == op.identity.key() && d.wanted == wanted && d.ids.size() == inputs.size();
    for (size_t i = 0; same && i < inputs.size(); ++i) same = d.ids[i] == (inputs[i] ? inputs[i]->spec().id : 0);
    if (!same || !attributes.has_key(d.key, op.run_time)) continue;
    d.last_use = ++state.calls;
    return d;
  }
  auto made = decide(op, mesh, inputs, attributes, options);
  if (state.decisions.size() >= max_cached_calls) forget_half(state);
  made->last_use = ++state.calls;
  return *state.decisions.emplace(h, std::move(made))->second;
}

// Keeps the decision while the call runs.
class Running {
 public:
  explicit Running(Decision& d) : d_(d) { ++d_.running; }
  ~Running() { --d_.running; }
  Running(const Running&) = delete;

 private:
  Decision& d_;
};

void run_kernel(const Op& op, Rank& rank, OpsState& state, const Decision& d, const Attributes& attributes,
                std::span<const DistributedTensor* const> used, std::span<Tensor> locals, bool accumulate, bool meta) {
  if (!meta) check(d.kernel, "[{}] has no kernel for {}", op.name, name(rank.device()));
  InlineVector<Tensor, max_operands> in;
  for (const DistributedTensor* x : used) {
    if (!x)
      in.emplace_back();
    else if (op.strided)
      in.emplace_back(x->local());
    else
      in.emplace_back(x->local().contiguous());
  }
  if (meta && !op.view) return;  // a view shares the storage of its operand there too, and what is copied is counted
  Context context(op.name, attributes, d.factors, rank.pool(), state.scratch, rank.allocator(), state.workspace.get());
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

bool contains(const std::vector<int>& list, int i) { return std::find(list.begin(), list.end(), i) != list.end(); }

// Operand i, a null pointer or an undefined tensor, may be one.
void check_absent(const Op& op, const DistributedTensor* x, size_t i) {
  if (contains(op.optional, int(i)) || contains(op.optional, any_input)) return;
  if (x) fail_undefined(op.name, i);
  check(contains(op.or_number, int(i)),
        "[{}] operand {} is absent, which this card cannot do without (see Op::optional)", op.name, i);
}

// Whether kernels of its rank reach the tensor's memory. A meta tensor is at home everywhere.
bool is_reached(const Tensor& t, const Rank& rank) {
  if (t.device() == Device::meta) return true;
  return t.device() == rank.device() &&
         (t.device() == Device::cpu || !t.allocator() || t.allocator() == rank.allocator());
}
[[noreturn]] void fail_device(const Op& op, const DistributedTensor& x, size_t i, const Rank& rank) {
  Device on = x.local().device();
  fail("[{}] operand {}, {}, is on {}{} and this rank's kernels on {}; bring its part here, .to(rank.allocator())",
       op.name, i, to_string(x), on == rank.device() ? "another device or stream of " : "", name(on),
       name(rank.device()));
}

// A tensor that is written in place is no other operand.
void check_written(const Op& op, std::span<const DistributedTensor* const> in) {
  for (int w : op.writes)
    for (size_t i = 0; i < in.size(); ++i)
      check(i == size_t(w) || !in[i] || in[i]->id() != in[size_t(w)]->id(),
            "[{}] operands {} and {} are one tensor, which is written in place: give a copy of it", op.name, w, i);
}

// Runs the call; `result` is given the outputs.
template <class Result>
void dispatch(const Op& op, std::span<const DistributedTensor* const> given, const Attributes& attributes,
              const CallOptions& options, Result result) {
  check(given.size() <= max_operands, "[{}] {} operands; at most {} are supported", op.name, given.size(),
        max_operands);
  std::array<const DistributedTensor*, max_operands> inputs, used;
  const DistributedTensor* first = nullptr;
  bool meta = false;
  for (size_t i = 0; i < given.size(); ++i) {
    inputs[i] = given[i] && given[i]->defined() ? given[i] : nullptr;
    if (!inputs[i]) {
      check_absent(op, given[i], i);
      continue;
    }
    const DistributedTensor& x = *given[i];
    if (!first)
      first = &x;
    else if (!(x.mesh() == first->mesh()))
      fail("[{}] operands on two meshes: {}; a model's tensors all live on one mesh", op.name,
           difference(first->mesh(), x.mesh()));
    meta |= x.is_meta();
    const Rank& rank = x.mesh().rank_state();
    if (!is_reached(x.local(), rank)) fail_device(op, x, i, rank);
  }
  check(first, "[{}] all operands are absent", op.name);
  std::span<const DistributedTensor* const> in(inputs.data(), given.size());
  const DeviceMesh& mesh = first->mesh();
  Rank& rank = mesh.rank_state();
  if (options.accumulated) *options.accumulated = false;

  if (op.composite) {
    std::vector<DistributedTensor> outputs = run_composite(op, rank, in, attributes);
    std::shared_ptr<const Op> card = lasting(op);
    rank.notify([&](Observer& o) { o.on_call({op, card, attributes, in, in, outputs, {}, options, false}); });
    result(std::span(outputs));
    return;
  }

  OpsState& state = state_of(rank);
  if (!op.writes.empty()) check_written(op, in);
  Decision& d = find_decision(state, op, mesh, in, attributes, options);
  Running running(d);
  std::vector<DistributedTensor> moved;
  std::copy_n(inputs.begin(), given.size(), used.begin());
  if (d.moves) bring(op, rank, d, std::span(used.data(), given.size()), moved);
  std::span<const DistributedTensor* const> ready(used.data(), given.size());

  // Output o is written in place, or added to, or new.
  bool accumulate = op.accumulates && may_take(options.into, *d.outputs[0]);
  auto in_place = [&](size_t o) {
    if (o < op.writes.size()) return *inputs[size_t(op.writes[o])];
    return accumulate && o == 0 ? *options.into : DistributedTensor();
  };
  InlineVector<Tensor, max_outputs> locals;
  Device device = meta ? Device::meta : rank.device();
  for (size_t o = 0; o < d.outputs.size(); ++o)
    if (DistributedTensor y = in_place(o); y.defined())
      locals.emplace_back(y.local_for_writing());
    else if (op.view)
      locals.emplace_back(Tensor::placeholder(d.outputs[o]->dtype, d.outputs[o]->local_shape));
    else
      locals.emplace_back(rank.allocator(), d.outputs[o]->dtype, d.outputs[o]->local_shape, device);
  run_kernel(op, rank, state, d, attributes, ready, std::span(locals.data(), locals.size()), accumulate, meta);

  InlineVector<DistributedTensor, max_outputs> outputs;
  for (size_t o = 0; o < locals.size(); ++o)
    if (DistributedTensor y = in_place(o); y.defined())
      outputs.emplace_back(std::move(y));
    else
      outputs.emplace_back(DistributedTensor::empty(mesh, d.outputs[o], std::move(locals[o])));
  std::span<DistributedTensor> out(outputs.data(), outputs.size());
  if (options.accumulated) *options.accumulated = accumulate;
  rank.notify([&](Observer& o) {
    o.on_call({op, d.card, attributes, in, ready, out, d.factors, options, accumulate});
  });
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
