#include "dtensor/route.h"

namespace dtensor {
namespace {

using Coordinates = std::array<int, max_axes>;

// Whether parcels, one after the other, are the whole box in row-major order: they divide its first dimension that is
// not 1.
bool in_order(const std::vector<Parcel>& parcels, const Box& whole) {
  int d = 0;
  while (d < whole.dims && whole[d].size() == 1) ++d;
  int64_t at = d < whole.dims ? whole[d].begin : 0, elements = 0;
  for (const auto& [peer, p] : parcels) {
    if (p.numel() == 0) continue;
    for (int e = 0; e < whole.dims; ++e)
      if (e == d ? p[e].begin != at : p[e] != whole[e]) return false;
    if (d < whole.dims) at = p[d].end;
    elements += p.numel();
  }
  return elements == whole.numel();
}

// The group of one rank in one step.
class Group {
 public:
  Group(const MeshShape& mesh, const Shape& shape, const Step& step, int rank)
      : mesh_(mesh), shape_(shape), step_(step), repeated_(step.axes & ~step.from.sharded()) {
    for (int a = 0; a < mesh.axes(); ++a) me_[size_t(a)] = mesh.coordinate(rank, a);
  }

  int size() const { return mesh_.product(step_.axes); }
  Box mine(const Layout& l) const { return box(l, me_); }

  // One parcel per rank of the group: what it holds of `whole` under `l`, nothing included.
  std::vector<Parcel> shares(const Layout& l, const Box& whole) const {
    std::vector<Parcel> all;
    each_place(step_.axes, me_, [&](const Coordinates& at) {
      all.push_back({index(at), intersection(box(l, at), whole)});
    });
    return all;
  }

  // What this rank reads, and from whom.
  std::vector<Parcel> received() const {
    std::vector<Parcel> all;
    Box now = mine(step_.to);
    each_piece(step_.from, now, [&](const Coordinates& at, const Box& piece) {
      all.push_back({index(holder(at, piece, me_)), intersection(piece, now)});
    });
    return sorted(std::move(all));
  }

  // What others read from this rank.
  std::vector<Parcel> sent() const {
    std::vector<Parcel> all;
    Box before = mine(step_.from);
    each_piece(step_.to, before, [&](const Coordinates& at, const Box& piece) {
      each_place(step_.axes & ~step_.to.sharded(), at, [&](const Coordinates& reader) {
        if (holder(me_, before, reader) == me_) all.push_back({index(reader), intersection(piece, before)});
      });
    });
    return sorted(std::move(all));
  }

 private:
  static std::vector<Parcel> sorted(std::vector<Parcel> parcels) {
    std::sort(parcels.begin(), parcels.end(), [](const Parcel& a, const Parcel& b) { return a.peer < b.peer; });
    return parcels;
  }

  int index(const Coordinates& at) const {
    int i = 0;
    for (int a = 0; a < mesh_.axes(); ++a)
      if (has(step_.axes, a)) i = i * mesh_.size(a) + at[size_t(a)];
    return i;
  }

  Box box(const Layout& l, const Coordinates& at) const {
    Box b = whole_box(shape_);
    for (int d = 0; d < b.dims; ++d)
      for (size_t a : l.split[size_t(d)]) b[d] = chunk(b[d], mesh_.size(int(a)), at[a]);
    return b;
  }

  // f of all coordinates on `axes`, in row-major order; those on other axes are as in `at`.
  template <class F>
  void each_place(AxisSet axes, Coordinates at, F f) const {
    for (int a = 0; a < mesh_.axes(); ++a)
      if (has(axes, a)) at[size_t(a)] = 0;
    for (int n = mesh_.product(axes); n > 0; --n) {
      f(at);
      for (int a = mesh_.axes() - 1; a >= 0; --a) {
        if (!has(axes, a)) continue;
        if (++at[size_t(a)] < mesh_.size(a)) break;
        at[size_t(a)] = 0;
      }
    }
  }

  // f of the pieces of `l` in the group that overlap `part`, and of where they are; axes of the group that do not split
  // are as in this rank.
  template <class F>
  void each_piece(const Layout& l, const Box& part, F f) const {
    if (part.numel() == 0) return;
    Coordinates at = me_;
    Box piece = whole_box(shape_);
    each_piece(l, part, 0, 0, at, piece, f);
  }
  template <class F>
  void each_piece(const Layout& l, const Box& part, int d, int i, Coordinates& at, Box& piece, F& f) const {
    if (d == piece.dims) return f(at, piece);
    const AxisList& list = l.split[size_t(d)];
    if (i == list.count) return each_piece(l, part, d + 1, 0, at, piece, f);
    const Range whole = piece[d];
    size_t a = list.axis[size_t(i)];
    auto [first, last] = touching(whole, part[d], int(a));
    for (int c = first; c <= last; ++c) {
      at[a] = c, piece[d] = chunk(whole, mesh_.size(int(a)), c);
      each_piece(l, part, d, i + 1, at, piece, f);
    }
    at[a] = me_[a], piece[d] = whole;
  }

  // The first and the last coordinate on an axis whose pieces of `whole` overlap `part`.
  std::pair<int, int> touching(const Range& whole, const Range& part, int a) const {
    if (!has(step_.axes, a)) return {me_[size_t(a)], me_[size_t(a)]};
    int64_t size = largest_piece(whole.size(), mesh_.size(a));
    int64_t begin = std::max(whole.begin, part.begin), end = std::min(whole.end, part.end);
    if (begin >= end) return {0, -1};
    return {int((begin - whole.begin) / size), int((end - 1 - whole.begin) / size)};
  }

  // Of the ranks that hold a piece, which is at `at` on the axes that split it, the one that `reader` reads it from:
  // itself, or the next in turn.
  Coordinates holder(Coordinates at, const Box& piece, const Coordinates& reader) const {
    if (!repeated_) return at;
    bool own = true;
    for (int a = 0; a < mesh_.axes(); ++a) own &= has(repeated_, a) || at[size_t(a)] == reader[size_t(a)];
    if (own) return reader;
    int turn = turn_of(reader, piece) % mesh_.product(repeated_);
    for (int a = mesh_.axes() - 1; a >= 0; --a)
      if (has(repeated_, a)) at[size_t(a)] = turn % mesh_.size(a), turn /= mesh_.size(a);
    return at;
  }

  // The reader's number among those whose new parts overlap the piece: in every dimension these are a run of pieces.
  int turn_of(const Coordinates& reader, const Box& piece) const {
    int turn = 0;
    for (int d = 0; d < piece.dims; ++d) {
      const AxisList& list = step_.to.split[size_t(d)];
      int first = number(list, place_of(list, shape_[d], piece[d].begin)),
          last = number(list, place_of(list, shape_[d], piece[d].end - 1));
      turn = turn * (last - first + 1) + number(list, reader) - first;
    }
    for (int a = 0; a < mesh_.axes(); ++a)
      if (has(step_.axes & ~step_.to.sharded(), a)) turn = turn * mesh_.size(a) + reader[size_t(a)];
    return turn;
  }

  // Pieces of one dimension are numbered along it.
  int number(const AxisList& list, const Coordinates& at) const {
    int n = 0;
    for (size_t a : list)
      if (has(step_.axes, int(a))) n = n * mesh_.size(int(a)) + at[a];
    return n;
  }

  // Where index i of a dimension of n is.
  Coordinates place_of(const AxisList& list, int64_t n, int64_t i) const {
    Coordinates at = me_;
    Range r{0, n};
    for (size_t a : list) {
      if (has(step_.axes, int(a))) at[a] = touching(r, {i, i + 1}, int(a)).first;
      r = chunk(r, mesh_.size(int(a)), at[a]);
    }
    return at;
  }

  const MeshShape& mesh_;
  const Shape& shape_;
  const Step& step_;
  AxisSet repeated_;  // axes of the group along which old pieces repeat
  Coordinates me_{};
};

std::vector<int64_t> counts_of(const std::vector<Parcel>& parcels, int peers) {
  std::vector<int64_t> n(static_cast<size_t>(peers));
  for (const Parcel& p : parcels) n[size_t(p.peer)] = p.box.numel();
  return n;
}

}  // namespace

Route find_route(const MeshShape& mesh, const Shape& shape, const Step& step, int rank) {
  Group group(mesh, shape, step, rank);
  Route r{group.mine(step.from), group.mine(step.to), {}, {}};
  if (step.kind == StepKind::all_reduce) return r;
  int n = group.size();
  if (step.kind == StepKind::all_gather) {
    // Axes that are sliced along make the new part, the same for all of the group, narrower than the old pieces.
    r.send = {{0, intersection(r.before, r.now)}}, r.receive = group.shares(step.from, r.now);
    r.counts = counts_of(r.receive, n);
  } else if (step.kind == StepKind::reduce_scatter) {
    // The new parts of the group are what is reduced; axes that are sliced along may make them less than the whole.
    r.send = group.shares(step.to, r.before);
    r.counts = counts_of(r.send, n);
  } else {
    r.send = group.sent(), r.receive = group.received();
    r.counts = counts_of(r.send, n), r.out_counts = counts_of(r.receive, n);
  }
  r.packs = !in_order(r.send, r.before);
  r.unpacks = step.kind != StepKind::reduce_scatter && !in_order(r.receive, r.now);
  if (!r.packs) r.send.clear();
  if (!r.unpacks) r.receive.clear();
  return r;
}

}  // namespace dtensor
