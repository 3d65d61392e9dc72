#include "ops/core/call.h"

#include <algorithm>
#include <array>

#include "dtensor/local/inline_vector.h"
#include "dtensor/redistribute.h"
#include "ops/core/decision.h"
#include "ops/core/in_f32.h"
#include "ops/cuda/kernels.h"

namespace dtensor {
namespace {

struct OpsState {
  Decisions decisions;
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
                std::span<const DistributedTensor* const> used, std::span<Tensor> locals, bool accumulate, bool meta,
                bool host) {
  Kernel kernel = host ? op.cpu : d.kernel;
  if (!meta) check(kernel, "[{}] has no kernel for {}", op.name, name(host ? Device::cpu : rank.device()));
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
  Context context(op.name, attributes, d.factors, rank.pool(), state.scratch,
                  host ? rank.host_allocator() : rank.allocator(), state.workspace.get());
  context.accumulate = accumulate, context.tf32 = rank.tf32;
  context.batch_factor = d.batch_factor, context.micro_batches = rank.micro_batches;
  if ((host || rank.device() == Device::cpu || d.in_f32) && !op.view)
    run_in_f32(kernel, context, std::span(in.data(), in.size()), locals, accumulate || !op.writes.empty());
  else
    kernel(context, std::span<const Tensor>(in.data(), in.size()), locals);
  for (size_t o = 0; o < locals.size(); ++o)
    if (locals[o].shape() != d.outputs[o]->local_shape)
      fail("[{}] the kernel left output {} with shape {}, not {}", op.name, o, locals[o].shape(),
           d.outputs[o]->local_shape);
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
bool may_take(const DistributedTensor* into, const LocalSpec& output, bool host) {
  return into && into->defined() && into->unique() && &into->spec() == &output && into->local().is_contiguous() &&
         into->is_on_host() == host;
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
bool is_reached(const DistributedTensor& x, const Rank& rank) {
  const Tensor& t = x.local();
  if (t.device() == Device::meta || x.is_on_host()) return true;
  return t.device() == rank.device() &&
         (t.device() == Device::cpu || !t.allocator() || t.allocator() == rank.allocator());
}
// Operands are all in host memory or all on the device, and those in host memory stay where they are.
[[noreturn]] void fail_host(const Op& op, const DistributedTensor& x) {
  fail(
      "[{}] {} is in host memory, where ops only run if all operands are there, in layouts that need no communication; "
      "bring it to the device first: x.redistribute(x.layout())",
      op.name, x);
}
[[noreturn]] void fail_device(const Op& op, const DistributedTensor& x, size_t i, const Rank& rank) {
  Device on = x.local().device();
  fail("[{}] operand {}, {}, is on {}{} and this rank's kernels on {}; bring its part here, .to(rank.allocator())",
       op.name, i, x, on == rank.device() ? "another device or stream of " : "", name(on), name(rank.device()));
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
    if (!is_reached(x, rank)) fail_device(op, x, i, rank);
    if (x.is_on_host() != first->is_on_host()) fail_host(op, x.is_on_host() ? x : *first);
  }
  check(first, "[{}] all operands are absent", op.name);
  std::span<const DistributedTensor* const> in(inputs.data(), given.size());
  const DeviceMesh& mesh = first->mesh();
  Rank& rank = mesh.rank_state();
  bool host = first->is_on_host();
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
  Decision& d = state.decisions.find(op, mesh, in, attributes, options);
  Running running(d);
  std::vector<DistributedTensor> moved;
  std::copy_n(inputs.begin(), given.size(), used.begin());
  if (d.moves && host) fail_host(op, *first);
  if (d.moves) bring(op, rank, d, std::span(used.data(), given.size()), moved);
  std::span<const DistributedTensor* const> ready(used.data(), given.size());

  // Output o is written in place, or added to, or new.
  bool accumulate = op.accumulates && may_take(options.into, *d.outputs[0], host);
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
      locals.emplace_back(Tensor::placeholder(d.outputs[o]->local_dtype, d.outputs[o]->local_shape));
    else
      locals.emplace_back(host ? rank.host_allocator() : rank.allocator(), d.outputs[o]->local_dtype,
                          d.outputs[o]->local_shape, device);
  run_kernel(op, rank, state, d, attributes, ready, std::span(locals.data(), locals.size()), accumulate, meta, host);

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
