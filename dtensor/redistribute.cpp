#include "dtensor/redistribute.h"

#include <exception>
#include <optional>

#include "dtensor/plan_cache.h"

namespace dtensor {
namespace {

// A tensor on its way.
struct Travel {
  size_t index;  // in the list
  DistributedTensor source;
  Layout target;
  std::shared_ptr<PlannedMove> planned;
  std::string reason;
  std::optional<DType> reduce_dtype;  // in which it travels to a reduction; none: as it is
  Tensor local;                       // its part by now
  AsyncCopy from_host = {};           // under way to `local`
  Tensor arriving = {};               // what a collective under way writes
  size_t next = 0;

  const Plan& plan() const { return planned->plan; }
  const Step& step() const { return plan().steps[next]; }
  bool arrived() const { return next == plan().steps.size(); }
  const DeviceMesh& mesh() const { return source.mesh(); }
  bool is_meta() const { return local.device() == Device::meta; }
  const Route& route() const { return planned->route(mesh(), source.shape(), next); }
  Box box(const Layout& l) const { return local_box(mesh().shape(), source.shape(), l, mesh().rank()); }
  Tensor make(const Shape& shape) const { return make(shape, local.dtype()); }
  Tensor make(const Shape& shape, DType dtype) const {
    return Tensor(mesh().rank_state().allocator(), dtype, shape, local.device());
  }
  // In which elements travel in the next step.
  DType dtype() const {
    bool reduced = !is_local(step().kind) && !is_exchange(step().kind);
    return reduced && reduce_dtype ? *reduce_dtype : local.dtype();
  }
  void convert_to(DType dtype) {
    if (local.dtype() == dtype) return;
    from_host.wait();
    Tensor converted = make(local.shape(), dtype);
    convert(local.contiguous(), converted);
    local = converted;
  }
  // Its part after the next step, rounded where all contributions are summed.
  void take(const Tensor& part) {
    local = part;
    convert_to(part_dtype(source.dtype(), step().to, mesh().rank_state().reduce_dtype));
  }
  // Beside the kernels.
  void begin_copy_from_host() {
    Tensor here = make(local.shape());
    from_host = copy_async(local.contiguous(), here);
    local = here;
  }
};

// `inner` in coordinates of a tensor that holds `outer`.
Box relative(const Box& inner, const Box& outer) {
  Box b = inner;
  for (int d = 0; d < b.dims; ++d) b[d] = {inner[d].begin - outer[d].begin, inner[d].end - outer[d].begin};
  return b;
}

void slice(Travel& t) {
  Box now = t.box(t.step().to), before = t.box(t.step().from);
  t.take(now.numel() ? t.local.part(relative(now, before)).contiguous() : t.make(now.shape()));
}

// A shard is padded.
void embed(Travel& t) {
  const Step& s = t.step();
  const MeshShape& mesh = t.mesh().shape();
  Reduce r = s.to.reduce;
  AxisSet was_shard = s.axes & s.from.sharded(), was_whole = s.axes & ~was_shard;
  bool keep = keeps_value(mesh, t.mesh().rank(), was_whole, r);
  Box now = t.box(s.to), before = t.box(s.from);
  t.take(t.local);
  if (keep && now == before && !(r == Reduce::avg && was_shard)) return;
  Tensor out = t.make(now.shape());
  fill_identity(out, r);
  if (keep) copy(t.local, out.part(relative(before, now)));
  if (keep && r == Reduce::avg && out.device() != Device::meta) {  // n contributions of which n - 1 are zero
    check(is_floating(out.dtype()), "[redistribute] Partial(avg) of {} is not supported", name(out.dtype()));
    scale(out, mesh.product(was_shard));
  }
  t.local = out;
}

// Parcels of `from` (which holds `outer`), one after the other.
Tensor pack(const Travel& t, const Tensor& from, const std::vector<Parcel>& parcels, const Box& outer) {
  int64_t n = 0, at = 0;
  for (const Parcel& p : parcels) n += p.box.numel();
  Tensor flat = t.make({n});
  for (const auto& [peer, box] : parcels) {
    copy(from.part(relative(box, outer)), flat.narrow(0, at, box.numel()).view(box.shape()));
    at += box.numel();
  }
  return flat;
}

void unpack(const Tensor& flat, const std::vector<Parcel>& parcels, const Tensor& to, const Box& outer) {
  int64_t at = 0;
  for (const auto& [peer, box] : parcels) {
    copy(flat.narrow(0, at, box.numel()).view(box.shape()), to.part(relative(box, outer)));
    at += box.numel();
  }
}

// Whether parcels of `part` that lie in another box are apart in its memory: they divide a dimension that is not the
// first of several elements. What routes find out, without a list of the ranks.
bool is_apart(const Box& part, const Box& other) {
  int first = 0;
  while (first < part.dims && part[first].size() == 1) ++first;
  for (int d = 0; d < part.dims; ++d)
    if (d != first && (other[d].begin > part[d].begin || other[d].end < part[d].end)) return true;
  return false;
}

// What a collective of one tensor takes. Nobody asks for the route of a meta tensor, which would take time in
// proportion to the ranks; but what would be packed and unpacked is counted.
Buffers prepare(Travel& t) {
  t.convert_to(t.dtype());
  if (t.is_meta()) {
    Box before = t.box(t.step().from), now = t.box(t.step().to);
    t.arriving = t.make(now.shape());
    return {is_apart(before, now) ? t.make(before.shape()) : t.local.contiguous(), t.arriving};
  }
  const Route& r = t.route();
  t.arriving = t.make(r.unpacks ? Shape{r.now.numel()} : r.now.shape());
  if (r.packs) t.from_host.wait();
  return {r.packs ? pack(t, t.local, r.send, r.before) : t.local.contiguous(), t.arriving, r.counts, r.out_counts,
          t.from_host};
}

void arrive(Travel& t) {
  t.from_host.wait();
  t.from_host = {};
  Tensor here = std::exchange(t.arriving, Tensor());
  if (t.is_meta()) {
    Box before = t.box(t.step().from), now = t.box(t.step().to);
    t.take(is_apart(now, before) ? t.make(now.shape()) : here);
  } else if (t.route().unpacks) {
    const Route& r = t.route();
    Tensor part = t.make(r.now.shape());
    unpack(here, r.receive, part, r.now);
    t.take(part);
  } else {
    t.take(here);
  }
  ++t.next;
}

Work start(Communicator& c, const Step& s, std::vector<Buffers> list) {
  switch (s.kind) {
    case StepKind::all_gather:
      return c.all_gather(std::move(list));
    case StepKind::permute:
    case StepKind::all_to_all:
      return c.all_to_all(std::move(list));
    case StepKind::reduce_scatter:
      return c.reduce_scatter(std::move(list), s.from.reduce);
    default:
      return c.all_reduce(std::move(list), s.from.reduce);
  }
}

bool same_launch(const Step& a, const Step& b) {
  return a.kind == b.kind && a.axes == b.axes && a.from.reduce == b.from.reduce;
}

// A launch under way, and the tensors that wait for it.
struct Launch {
  std::vector<Travel*> list;
  Work work;

  void finish() {
    work.wait();
    for (Travel* t : list) arrive(*t);
  }
};

Launch start_collective(std::vector<Travel*> list, bool asked_for) {
  const DeviceMesh& mesh = list[0]->mesh();
  Rank& rank = mesh.rank_state();
  const Step& first = list[0]->step();
  uint64_t group = rank.next_id();
  std::vector<Buffers> buffers;
  for (Travel* t : list) {
    if (rank.strict && !asked_for)
      fail(
          "[{}] strict mode: {} of {} ({} bytes), which nobody asked for; bring the operand to {} with redistribute() "
          "or a plan line",
          rank.label(Label::Kind::op), collective_name(t->step().kind), to_string(t->source), t->step().bytes,
          to_string(t->target, mesh.shape()));
    const Step& s = t->step();
    rank.notify([&](Observer& o) {
      o.on_collective({mesh, collective_kind(s.kind), s.axes, s.bytes, t->dtype(), t->source.dtype(), t->source.shape(),
                       &s, group, t->reason, asked_for});
    });
    buffers.push_back(prepare(*t));
  }
  Work work = start(mesh.communicator(first.axes), first, std::move(buffers));
  return {std::move(list), std::move(work)};
}

// Takes the local steps that come next and starts a collective of those that need the same one; nothing where all have
// arrived.
std::optional<Launch> next_launch(std::vector<Travel>& all, bool asked_for) {
  Travel* first = nullptr;
  for (Travel& t : all) {
    for (; !t.arrived() && is_local(t.step().kind); ++t.next) {
      t.from_host.wait();
      t.step().kind == StepKind::slice ? slice(t) : embed(t);
    }
    if (!first && !t.arrived()) first = &t;
  }
  if (!first) return {};
  std::vector<Travel*> list;
  for (Travel& t : all)
    if (!t.arrived() && same_launch(t.step(), first->step())) list.push_back(&t);
  return start_collective(std::move(list), asked_for);
}

}  // namespace

bool keeps_value(const MeshShape& mesh, int rank, AxisSet axes, Reduce reduce) {
  return mesh.index_in(rank, axes) == 0 || reduce == Reduce::min || reduce == Reduce::max || reduce == Reduce::avg;
}

Plan plan_of(const DistributedTensor& x, const Layout& to) {
  std::optional<DType> reduce_dtype = reduced_as(x.dtype(), x.mesh().rank_state().reduce_dtype);
  return x.mesh().plans().find(x.mesh(), x.spec(), strip_narrow_axes(x.mesh().shape(), to), reduce_dtype)->plan;
}

struct Redistribution::State {
  std::vector<DistributedTensor> result;
  std::vector<Travel> travels;
  bool asked_for, remake;
  bool finished = false;
  std::exception_ptr error = nullptr;  // what ended it
  std::optional<Launch> launch = {};   // the last member: a collective under way ends before its tensors do

  void start(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
             const RedistributeOptions& options);
  void finish();
};

void Redistribution::State::start(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                  const RedistributeOptions& options) {
  for (size_t i = 0; i < list.size(); ++i) {
    const DistributedTensor& x = list[i];
    check(x.defined(), "[redistribute] tensor {} is undefined", i);
    if (!(x.mesh() == list[0].mesh()))
      fail("[redistribute] tensors on two meshes: {}", difference(list[0].mesh(), x.mesh()));
    for (int d = x.dims(); d < max_dims; ++d)
      if (layouts[i].split[size_t(d)].count) fail("[redistribute] {} has no dimension {} to shard", to_string(x), d);
    Layout to = strip_narrow_axes(x.mesh().shape(), layouts[i]);
    if (x.layout() == to && !x.is_on_host()) continue;
    std::string_view reason = i < options.reasons.size() ? options.reasons[i] : options.reason;
    std::optional<DType> reduce_dtype;
    if (i < options.reduce_dtypes.size()) reduce_dtype = options.reduce_dtypes[i];
    if (!reduce_dtype) reduce_dtype = reduced_as(x.dtype(), x.mesh().rank_state().reduce_dtype);
    auto plan = x.mesh().plans().find(x.mesh(), x.spec(), to, reduce_dtype);
    travels.push_back({i, x, to, plan, std::string(reason), reduce_dtype, x.local()});
    if (!x.is_on_host()) continue;
    x.mesh().rank_state().notify([&](Observer& o) { o.on_host_copy(x); });
    travels.back().begin_copy_from_host();
  }
  launch = next_launch(travels, asked_for);
}

void Redistribution::State::finish() {
  while (launch) {
    launch->finish();
    launch = next_launch(travels, asked_for);
  }
  uint64_t batch = travels.empty() ? 0 : travels[0].mesh().rank_state().next_id();
  for (Travel& t : travels) {
    const DistributedTensor& x = t.source;
    t.from_host.wait();
    SpecHandle spec = x.mesh().intern({x.dtype(), x.shape(), t.target});
    if (t.local.shape() != spec->local_shape) t.local = t.make(spec->local_shape);  // empty: no steps were needed
    t.convert_to(spec->local_dtype);
    DistributedTensor& to = result[t.index] = DistributedTensor::empty(x.mesh(), spec, t.local);
    x.mesh().rank_state().notify([&](Observer& o) { o.on_redistribute({x, to, t.plan(), remake, batch}); });
  }
  travels.clear();
}

Redistribution Redistribution::begin(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                     const RedistributeOptions& options) {
  check(list.size() == layouts.size(), "[redistribute] {} tensors and {} layouts", list.size(), layouts.size());
  Redistribution r;
  r.state_ = std::make_shared<State>(
      State{std::vector<DistributedTensor>(list.begin(), list.end()), {}, options.asked_for, options.remake});
  r.state_->start(list, layouts, options);
  return r;
}

std::vector<DistributedTensor> Redistribution::finish() {
  check(defined(), "[Redistribution::finish] nothing is under way: this handle was finished, or began nothing");
  std::shared_ptr<State> s = std::exchange(state_, nullptr);
  if (s->error) std::rethrow_exception(s->error);
  if (!std::exchange(s->finished, true)) try {
      s->finish();
    } catch (...) {
      s->error = std::current_exception();
      throw;
    }
  return s->result;
}

std::vector<DistributedTensor> redistribute(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                            const RedistributeOptions& options) {
  return Redistribution::begin(list, layouts, options).finish();
}

}  // namespace dtensor
