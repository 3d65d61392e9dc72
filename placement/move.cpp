#include "placement/move.h"

#include <numeric>

namespace dtensor::planning {

Change::Change(const Problem& p, const Layout& x, const Layout& y) {
  for (int d = 0; d < p.shape.dims(); ++d) {
    const AxisList &u = x.split[size_t(d)], &v = y.split[size_t(d)];
    int64_t extent = p.shape[d];
    int i = 0;
    for (; i < u.count && i < v.count && u.axis[size_t(i)] == v.axis[size_t(i)]; ++i)
      extent = largest_piece(extent, p.mesh.size(u.axis[size_t(i)]));
    if (i == u.count && i == v.count) continue;
    AxisSet out = u.set(i), in = v.set(i);
    left |= out, joined |= in, group |= out ? out | in : 0;
    int n = p.product(out), m = p.product(in);
    if (out)
      sources *= in ? (n + 2 * m - std::gcd(n, m) - 1) / m : n,  // cells of an n-grid that an m-grid's cell can touch
          least_sources *= std::max(1.0, double(n) / m);
    for (; i < u.count; ++i) {
      size_t a = u.axis[size_t(i)];
      int k = p.mesh.size(int(a));
      int64_t next = largest_piece(extent, k);
      part[a] = in ? 0 : std::max<int64_t>(0, extent - (k - 1) * next), whole[a] = extent, extent = next;
    }
  }
}

namespace {

// Point to point: what crosses the slowest axis is charged first, then what crosses the next. Returns the bytes kept.
int64_t charge_exchange(const Problem& p, const Change& c, int64_t bytes, Picoseconds& time) {
  int64_t rest = bytes;
  for (AxisSet todo = c.group; todo && rest;) {
    int slow = std::countr_zero(todo);
    for (int a = slow + 1; a < p.mesh.axes(); ++a)
      if (has(todo, a) && p.link(a).mb_per_second < p.link(slow).mb_per_second) slow = a;
    int64_t part = c.part[size_t(slow)], whole = c.whole[size_t(slow)];
    int64_t here = part ? int64_t(double(rest) * double(part) / double(whole)) : 0;  // rest * part may overflow
    time += p.link(slow).transfer(rest - here);
    rest = here;
    todo &= ~axis_bit(slow);
  }
  return rest;
}

}  // namespace

std::optional<Move> move_between(const Problem& p, const Node& from, const Node& to) {
  const Layout &x = from.layout, &y = to.layout;
  AxisSet reduced = x.partial & ~y.partial, made = y.partial & ~x.partial;
  if ((reduced && made) || (x.partial && y.partial && x.reduce != y.reduce)) return {};
  Change c(p, x, y);
  Move move{StepKind::slice, c.joined};
  if (made) {
    if (c.joined || c.left & ~made) return {};
    move.kind = StepKind::embed, move.axes = made;
    move.time = p.cost.local.launch_ns * 1000 + p.cost.local.transfer(to.elements * p.moved(y));
    return move;
  }
  if (!reduced && !c.left) return move;

  move.axes = reduced ? reduced : c.group;
  const Link& link = p.slowest[move.axes];
  int64_t n = p.product(move.axes);
  if (reduced) {  // a ring over the flattened group
    if (c.left || (c.joined && reduced & ~c.joined)) return {};
    move.kind = c.joined ? StepKind::reduce_scatter : StepKind::all_reduce;
    move.messages = c.joined ? n - 1 : 2 * (n - 1);
    move.bytes = (c.joined ? (n - 1) * to.elements : 2 * (n - 1) * largest_piece(to.elements, n)) * p.reduced(x);
    move.time = link.transfer(move.bytes);
  } else {
    move.time = 0;
    int64_t bytes = to.elements * p.moved(x), kept = charge_exchange(p, c, bytes, move.time);
    move.kind = !(c.joined & c.left) && c.group == c.left ? StepKind::all_gather
                : c.sources == 1                          ? StepKind::permute
                                                          : StepKind::all_to_all;
    move.messages = std::min<int64_t>(c.sources - (kept > 0), p.product(c.left) - 1);
    move.bytes = bytes - kept, move.least_messages = std::max(1.0, c.least_sources - 1);
  }
  move.time += (link.launch_ns + link.hop_ns * move.messages) * 1000;
  return move;
}

}  // namespace dtensor::planning
