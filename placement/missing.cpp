#include "placement/missing.h"

#include <optional>

namespace dtensor {
namespace {

// Where axes divide all sizes, all parts are alike: the answer follows from the lists of axes. Where these part, a rank
// that is last on the one axis and first on the other has nothing of its new range; else one range contains the other.
// None: some size is not divided.
std::optional<int64_t> missing_of_even_parts(const MeshShape& mesh, const Shape& shape, const Layout& from,
                                             const Layout& to) {
  int64_t part = 1, held = 1;  // of a new part; of it what was there before
  for (int d = 0; d < shape.dims(); ++d) {
    const AxisList &u = from.split[size_t(d)], &v = to.split[size_t(d)];
    auto next = [&](const AxisList& list, int i) {  // on the way axes of one rank do nothing
      while (i < list.count && mesh.size(list.axis[size_t(i)]) == 1) ++i;
      return i;
    };
    int64_t both = 1, before = 1, after = 1;  // pieces: of the common axes, of the others
    int i = next(u, 0), j = next(v, 0);
    for (; i < u.count && j < v.count && u.axis[size_t(i)] == v.axis[size_t(j)]; i = next(u, i + 1), j = next(v, j + 1))
      both *= mesh.size(u.axis[size_t(i)]);
    bool apart = i < u.count && j < v.count;
    for (; i < u.count; ++i) before *= mesh.size(u.axis[size_t(i)]);
    for (; j < v.count; ++j) after *= mesh.size(v.axis[size_t(j)]);
    if (shape[d] % (both * before) || shape[d] % (both * after)) return {};
    part *= shape[d] / (both * after);
    held *= apart ? 0 : shape[d] / (both * before * after);
  }
  return part - held;
}

struct Sizes {
  int64_t least, most;
};

// Ranks whose coordinates lie within bounds, both included.
struct Region {
  std::array<int, max_axes> first{}, last{};
};

class MostMissing {
 public:
  MostMissing(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to, int64_t enough)
      : mesh_(mesh), shape_(shape), from_(from), to_(to), enough_(enough) {}

  int64_t run() {
    Region all;
    AxisSet moved = from_.sharded() | to_.sharded();  // along other axes all ranks are alike
    for (int a = 0; a < mesh_.axes(); ++a)
      if (has(moved, a)) all.last[size_t(a)] = mesh_.size(a) - 1;
    open(all, bound(all));
    return found_;
  }

 private:
  // No rank of the region lacks more than `most`.
  void open(const Region& region, int64_t most) {
    if (most <= found_ || found_ >= enough_) return;
    int widest = 0;
    for (int a = 1; a < mesh_.axes(); ++a)
      if (width(region, a) > width(region, widest)) widest = a;
    if (!width(region, widest)) {
      found_ = most;  // of one rank the bound is exact
      return;
    }
    Region low = region, high = region;
    size_t a = size_t(widest);
    low.last[a] = (region.first[a] + region.last[a]) / 2;
    high.first[a] = low.last[a] + 1;
    int64_t most_low = bound(low), most_high = bound(high);
    if (most_low >= most_high) {
      open(low, most_low), open(high, most_high);
    } else {
      open(high, most_high), open(low, most_low);
    }
  }

  static int width(const Region& r, int a) { return r.last[size_t(a)] - r.first[size_t(a)]; }

  // At most this many elements of new parts that are not in old ones: whole new parts less what surely overlaps.
  int64_t bound(const Region& region) const {
    int64_t now = 1, overlap = 1;
    for (int d = 0; d < shape_.dims(); ++d) {
      const AxisList &u = from_.split[size_t(d)], &v = to_.split[size_t(d)];
      Sizes both{shape_[d], shape_[d]};
      int i = 0;
      for (; i < u.count && i < v.count && u.axis[size_t(i)] == v.axis[size_t(i)]; ++i)
        both = pieces(both, u.axis[size_t(i)], region);
      Sizes before = both, after = both;
      for (int k = i; k < u.count; ++k) before = pieces(before, u.axis[size_t(k)], region);
      for (int k = i; k < v.count; ++k) after = pieces(after, v.axis[size_t(k)], region);
      now *= after.most;
      if (i == u.count)
        overlap *= after.least;  // the new part is inside the old one
      else if (i == v.count)
        overlap *= before.least;
      else
        overlap *= both.least == both.most ? least_overlap(both.most, u, v, i, region) : 0;
    }
    return now - overlap;
  }

  // The sizes of the pieces of ranges of given sizes.
  Sizes pieces(Sizes whole, int axis, const Region& region) const {
    int k = mesh_.size(axis), first = region.first[size_t(axis)], last = region.last[size_t(axis)];
    if (whole.least == whole.most)
      return {chunk({0, whole.most}, k, last).size(), chunk({0, whole.most}, k, first).size()};
    return {last ? 0 : largest_piece(whole.least, k), largest_piece(whole.most, k)};
  }

  // Of a range of n elements, split by the axes from place `i` of u and of v. Pieces begin and end later for later
  // coordinates.
  int64_t least_overlap(int64_t n, const AxisList& u, const AxisList& v, int i, const Region& region) const {
    Range u_first = piece(n, u, i, region.first), u_last = piece(n, u, i, region.last);
    Range v_first = piece(n, v, i, region.first), v_last = piece(n, v, i, region.last);
    return std::max<int64_t>(0, std::min(u_first.end, v_first.end) - std::max(u_last.begin, v_last.begin));
  }

  Range piece(int64_t n, const AxisList& list, int i, const std::array<int, max_axes>& at) const {
    Range r{0, n};
    for (; i < list.count; ++i) {
      size_t a = list.axis[size_t(i)];
      r = chunk(r, mesh_.size(int(a)), at[a]);
    }
    return r;
  }

  const MeshShape& mesh_;
  const Shape& shape_;
  const Layout &from_, &to_;
  int64_t enough_, found_ = 0;
};

}  // namespace

int64_t most_missing(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to, int64_t enough) {
  if (auto even = missing_of_even_parts(mesh, shape, from, to)) return *even;
  return MostMissing(mesh, shape, from, to, enough).run();
}

}  // namespace dtensor
