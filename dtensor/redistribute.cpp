#include "dtensor/redistribute.h"

#include <optional>

#include "placement/redistribution.h"

namespace dtensor {
namespace {

// A tensor on its way: its local part and the boxes of all ranks of a step's group are found from the layouts.
struct Travel {
  DistributedTensor source;
  Plan plan;
  Tensor local;
  std::string reason;
  size_t next = 0;

  const Step& step() const { return plan.steps[next]; }
  bool arrived() const { return next == plan.steps.size(); }
  const DeviceMesh& mesh() const { return source.mesh(); }
  Box box(const Layout& l, int rank) const { return local_box(mesh().shape(), source.shape(), l, rank); }
  Box box(const Layout& l) const { return box(l, mesh().rank()); }
  Tensor make(const Shape& shape) const {
    return Tensor(mesh().rank_state().allocator(), source.dtype(), shape, local.device());
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
  t.local = now.numel() ? t.local.part(relative(now, before)).contiguous() : t.make(now.shape());
}

// A shard is padded.
void embed(Travel& t) {
  const Step& s = t.step();
  const MeshShape& mesh = t.mesh().shape();
  Reduce r = s.to.reduce;
  AxisSet was_shard = s.axes & s.from.sharded(), was_whole = s.axes & ~was_shard;
  bool keep = keeps_value(mesh, t.mesh().rank(), was_whole, r);
  Box now = t.box(s.to), before = t.box(s.from);
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

// Whether pieces, one after the other, are the whole in row-major order: they divide its first dimension that is not 1.
bool in_order(const std::vector<Box>& pieces, const Box& whole) {
  int d = 0;
  while (d < whole.dims && whole[d].size() == 1) ++d;
  int64_t at = d < whole.dims ? whole[d].begin : 0;
  for (const Box& p : pieces) {
    if (p.numel() == 0) continue;
    for (int e = 0; e < whole.dims; ++e)
      if (e == d ? p[e].begin != at : p[e] != whole[e]) return false;
    if (d < whole.dims) at = p[d].end;
  }
  return true;
}

// Pieces of `from` (which holds `outer`), one after the other.
Tensor pack(Travel& t, const Tensor& from, const std::vector<Box>& pieces, const Box& outer) {
  int64_t n = 0;
  for (const Box& p : pieces) n += p.numel();
  Tensor flat = t.make({n});
  int64_t at = 0;
  for (const Box& p : pieces) {
    copy(from.part(relative(p, outer)), flat.narrow(0, at, p.numel()).view(p.shape()));
    at += p.numel();
  }
  return flat;
}

void unpack(const Tensor& flat, const std::vector<Box>& pieces, const Tensor& to, const Box& outer) {
  int64_t at = 0;
  for (const Box& p : pieces) {
    copy(flat.narrow(0, at, p.numel()).view(p.shape()), to.part(relative(p, outer)));
    at += p.numel();
  }
}

std::vector<int64_t> sizes_of(const std::vector<Box>& pieces) {
  std::vector<int64_t> n;
  for (const Box& p : pieces) n.push_back(p.numel());
  return n;
}

// What a collective of one tensor takes, and what is left to do when it is over.
struct Prepared {
  Buffers buffers;
  std::function<void(Travel&)> finish;
};

// Axes that are sliced along make the new box, the same for all of the group, narrower than the old pieces.
Prepared prepare_all_gather(Travel& t) {
  std::vector<Box> pieces;
  Box now = t.box(t.step().to), before = t.box(t.step().from);
  for (int r : t.mesh().shape().group(t.mesh().rank(), t.step().axes))
    pieces.push_back(intersection(t.box(t.step().from, r), now));
  Tensor in = t.local.part(relative(intersection(before, now), before)).contiguous(), flat = t.make({now.numel()});
  return {{in, flat, sizes_of(pieces)}, [=](Travel& travel) {
            if (in_order(pieces, now)) {
              travel.local = flat.view(now.shape());
            } else {
              travel.local = travel.make(now.shape());
              unpack(flat, pieces, travel.local, now);
            }
          }};
}

// Every rank reads the part of its new box that it lacks from one holder of each piece: the one that has sent least so
// far, counted alike by all ranks.
Prepared prepare_all_to_all(Travel& t) {
  const Step& s = t.step();
  std::vector<int> group = t.mesh().shape().group(t.mesh().rank(), s.axes);
  size_t n = group.size(), me = size_t(t.mesh().shape().index_in(t.mesh().rank(), s.axes));
  std::vector<Box> before, now;
  for (int r : group) before.push_back(t.box(s.from, r)), now.push_back(t.box(s.to, r));
  std::vector<int64_t> load(n);
  Box nothing;
  nothing.dims = before[0].dims;
  std::vector<Box> send(n, nothing), receive(n, nothing);  // nothing has no elements, unless it has no dimensions
  for (size_t to = 0; to < n; ++to) {
    std::vector<char> served(n);
    auto serve = [&](size_t holder) {
      Box part = intersection(now[to], before[holder]);
      for (size_t q = 0; q < n; ++q)
        if (before[q] == before[holder]) served[q] = 1;
      if (holder != to) load[holder] += part.numel();
      if (holder == me) send[to] = part;
      if (to == me) receive[holder] = part;
    };
    serve(to);
    for (size_t from = 0; from < n; ++from) {
      if (served[from] || intersection(now[to], before[from]).numel() == 0) continue;
      size_t holder = from;
      for (size_t q = from; q < n; ++q)
        if (before[q] == before[from] && load[q] < load[holder]) holder = q;
      serve(holder);
    }
  }
  Tensor in = pack(t, t.local, send, before[me]), flat = t.make({now[me].numel()});
  return {{in, flat, sizes_of(send), sizes_of(receive)}, [=, target = now[me]](Travel& travel) {
            travel.local = travel.make(target.shape());
            unpack(flat, receive, travel.local, target);
          }};
}

Prepared prepare_all_reduce(Travel& t) {
  Tensor out = t.make(t.local.shape());
  return {{t.local.contiguous(), out}, [out](Travel& travel) { travel.local = out; }};
}

Prepared prepare_reduce_scatter(Travel& t) {
  std::vector<Box> pieces;
  for (int r : t.mesh().shape().group(t.mesh().rank(), t.step().axes)) pieces.push_back(t.box(t.step().to, r));
  Box before = t.box(t.step().from), now = t.box(t.step().to);
  // The new pieces of the group are what is reduced; axes that are sliced along may make them less than the whole.
  bool whole = false;
  int64_t n = 0;
  for (const Box& p : pieces) n += p.numel();
  whole = n == before.numel() && in_order(pieces, before);
  Tensor in = whole ? t.local.contiguous() : pack(t, t.local, pieces, before), out = t.make(now.shape());
  return {{in, out, sizes_of(pieces)}, [out](Travel& travel) { travel.local = out; }};
}

Prepared prepare(Travel& t) {
  switch (t.step().kind) {
    case StepKind::all_gather:
      return prepare_all_gather(t);
    case StepKind::permute:
    case StepKind::all_to_all:
      return prepare_all_to_all(t);
    case StepKind::reduce_scatter:
      return prepare_reduce_scatter(t);
    default:
      return prepare_all_reduce(t);
  }
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
  std::vector<Prepared> prepared;
  Work work;

  void finish() {
    work.wait();
    for (size_t i = 0; i < list.size(); ++i) {
      prepared[i].finish(*list[i]);
      ++list[i]->next;
    }
  }
};

Launch start_collective(std::vector<Travel*> list, bool asked_for) {
  const DeviceMesh& mesh = list[0]->mesh();
  Rank& rank = mesh.rank_state();
  const Step first = list[0]->step();
  uint64_t group = rank.next_id();
  std::vector<Prepared> prepared;
  std::vector<Buffers> buffers;
  for (Travel* t : list) {
    if (rank.strict && !asked_for)
      fail(
          "[{}] strict mode: {} of {} ({} bytes), which nobody asked for; bring the operand to {} with redistribute() "
          "or a plan line",
          rank.label(Label::Kind::op), collective_name(t->step().kind), to_string(t->source), t->step().bytes,
          to_string(t->plan.steps.back().to, mesh.shape()));
    const Step& s = t->step();
    rank.notify([&](Observer& o) {
      o.on_collective({mesh, collective_kind(s.kind), s.axes, s.bytes, t->source.dtype(), t->source.shape(), &s, group,
                       t->reason, asked_for});
    });
    prepared.push_back(prepare(*t));
    buffers.push_back(prepared.back().buffers);
  }
  Work work = start(mesh.communicator(first.axes), first, std::move(buffers));
  return {std::move(list), std::move(prepared), std::move(work)};
}

// Takes the local steps that come next and starts a collective of those that need the same one; nothing where all have
// arrived.
std::optional<Launch> next_launch(std::vector<Travel>& all, bool asked_for) {
  Travel* first = nullptr;
  for (Travel& t : all) {
    for (; !t.arrived() && is_local(t.step().kind); ++t.next) t.step().kind == StepKind::slice ? slice(t) : embed(t);
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
  return plan_redistribution(x.mesh().shape(), x.shape(), itemsize(x.dtype()), x.layout(), to);
}

struct Redistribution::State {
  std::vector<DistributedTensor> result;
  std::vector<Travel> travels;
  std::vector<size_t> index;  // of each travel's tensor
  std::vector<Layout> layouts;
  std::optional<Launch> launch;
  bool asked_for, remake;
};

Redistribution Redistribution::begin(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                     const RedistributeOptions& options) {
  check(list.size() == layouts.size(), "[redistribute] {} tensors and {} layouts", list.size(), layouts.size());
  Redistribution r;
  r.state_ = std::make_shared<State>();
  State& s = *r.state_;
  s.result.assign(list.begin(), list.end());
  s.asked_for = options.asked_for, s.remake = options.remake;
  for (size_t i = 0; i < list.size(); ++i) {
    const DistributedTensor& x = list[i];
    check(x.defined(), "[redistribute] tensor {} is undefined", i);
    if (!(x.mesh() == list[0].mesh()))
      fail("[redistribute] tensors on two meshes: {}", difference(list[0].mesh(), x.mesh()));
    for (int d = x.dims(); d < max_dims; ++d)
      if (layouts[i].split[size_t(d)].count) fail("[redistribute] {} has no dimension {} to shard", to_string(x), d);
    Layout to = strip_narrow_axes(x.mesh().shape(), layouts[i]);
    if (x.layout() == to) continue;
    s.travels.push_back(
        {x, plan_of(x, to), x.local(), std::string(i < options.reasons.size() ? options.reasons[i] : options.reason)});
    s.index.push_back(i);
    s.layouts.push_back(to);
  }
  s.launch = next_launch(s.travels, s.asked_for);
  return r;
}

std::vector<DistributedTensor> Redistribution::finish() {
  State& s = *state_;
  while (s.launch) {
    s.launch->finish();
    s.launch = next_launch(s.travels, s.asked_for);
  }
  uint64_t batch = s.travels.empty() ? 0 : s.travels[0].mesh().rank_state().next_id();
  for (size_t k = 0; k < s.travels.size(); ++k) {
    const DistributedTensor& x = s.travels[k].source;
    SpecHandle spec = x.mesh().intern({x.dtype(), x.shape(), s.layouts[k]});
    Tensor local = s.travels[k].local;
    if (local.shape() != spec->local_shape)
      local = s.travels[k].make(spec->local_shape);  // empty: no steps were needed
    DistributedTensor& to = s.result[s.index[k]] = DistributedTensor::empty(x.mesh(), spec, local);
    x.mesh().rank_state().notify([&](Observer& o) { o.on_redistribute({x, to, s.remake, batch}); });
  }
  std::vector<DistributedTensor> result = std::move(s.result);
  state_.reset();
  return result;
}

std::vector<DistributedTensor> redistribute(std::span<const DistributedTensor> list, std::span<const Layout> layouts,
                                            const RedistributeOptions& options) {
  return Redistribution::begin(list, layouts, options).finish();
}

}  // namespace dtensor
