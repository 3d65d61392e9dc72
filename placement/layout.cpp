#include "placement/layout.h"

namespace dtensor {

void AxisList::insert(int position, int a) {
  push_back(a);
  std::rotate(axis.begin() + position, axis.begin() + count - 1, axis.begin() + count);
}

namespace {
void check_dim(int dim) {
  check(dim < max_dims, "[Layout] Shard({}): a tensor has at most {} dimensions, 0 to {}", dim, max_dims, max_dims - 1);
  check(dim >= 0, "[Layout] Shard({}) needs a tensor's dimensions: use normalize()", dim);
}
}  // namespace

Layout::Layout(std::span<const Placement> placements) {
  check(placements.size() <= size_t(max_axes), "[Layout] {} placements; a mesh has at most {} axes", placements.size(),
        max_axes);
  for (int a = 0; a < int(placements.size()); ++a) {
    Placement p = placements[size_t(a)];
    if (p.is_shard()) {
      check_dim(p.dim);
      split[size_t(p.dim)].push_back(a);
    } else if (p.is_partial()) {
      check(!partial || reduce == p.reduce, "[Layout] Partial({}) and Partial({}) do not mix: reduce one of them first",
            name(reduce), name(p.reduce));
      partial |= axis_bit(a);
      reduce = p.reduce;
    }
  }
}

Placement Layout::operator[](int axis) const {
  if (has(partial, axis)) return Partial(reduce);
  for (int d = 0; d < max_dims; ++d)
    if (has(split[size_t(d)].set(), axis)) return Shard(d);
  return Replicate();
}

namespace {
Layout without(const Layout& layout, int axis) {
  Layout l = layout;
  l.partial &= ~axis_bit(axis);
  if (!l.partial) l.reduce = Reduce::sum;
  for (size_t d = 0; d < max_dims; ++d) {
    l.split[d] = {};
    for (int a : layout.split[d])
      if (a != axis) l.split[d].push_back(a);
  }
  return l;
}

// The axes of `list` that stand further in than `axis`; where it is not among them, as in mesh order.
AxisSet axes_inside(const AxisList& list, int axis) {
  for (int i = 0; i < list.count; ++i)
    if (list.axis[size_t(i)] == axis) return list.set(i + 1);
  for (int i = 0; i < list.count; ++i)
    if (list.axis[size_t(i)] > axis) return list.set(i);
  return 0;
}
}  // namespace

Layout Layout::with(std::span<const AxisPlacement> changes) const {
  Layout l = *this;
  for (const AxisPlacement& c : changes) l = without(l, c.axis);
  const AxisSet kept = l.sharded();
  std::array<int, max_dims> behind{};  // those that were placed already
  for (const auto& [axis, p] : changes) {
    if (p.is_partial()) {
      check(!l.partial || l.reduce == p.reduce,
            "[Layout] Partial({}) and Partial({}) do not mix: reduce one of them first", name(l.reduce),
            name(p.reduce));
      l.partial |= axis_bit(axis);
      l.reduce = p.reduce;
    } else if (p.is_shard()) {
      check_dim(p.dim);
      AxisList& list = l.split[size_t(p.dim)];
      AxisSet inside = axes_inside(split[size_t(p.dim)], axis) & kept;
      int& at = behind[size_t(p.dim)];
      for (int i = at; i < list.count; ++i)  // behind those kept that are not further in
        if (has(kept & ~inside, list.axis[size_t(i)])) at = i + 1;
      list.insert(at++, axis);
    }
  }
  return l;
}

Layout Layout::with(const MeshShape& mesh, std::string_view axis, Placement p) const {
  return with(mesh.axis(axis, "Layout::with"), p);
}

Layout Layout::with_innermost(int axis, int dim) const {
  check_dim(dim);
  Layout l = without(*this, axis);
  l.split[size_t(dim)].push_back(axis);
  return l;
}

AxisSet Layout::sharded() const {
  AxisSet s = 0;
  for (const AxisList& list : split) s |= list.set();
  return s;
}

bool Layout::in_mesh_order() const {
  for (const AxisList& list : split)
    if (!std::is_sorted(list.begin(), list.end())) return false;
  return true;
}

uint64_t Layout::code() const {
  uint64_t c = partial ? uint64_t(reduce) + 1 : 0;
  for (int a = 0; a < max_axes; ++a)
    if (has(partial, a)) c |= uint64_t(0xf0) << 8 * (a + 1);
  for (int d = 0; d < max_dims; ++d)
    for (int i = 0; i < split[size_t(d)].count; ++i)
      c |= uint64_t(16 * (d + 1) + i) << 8 * (split[size_t(d)].axis[size_t(i)] + 1);
  return c;
}

Range local_range(const MeshShape& mesh, int64_t n, const AxisList& list, int rank) {
  Range r{0, n};
  for (int a : list) r = chunk(r, mesh.size(a), mesh.coordinate(rank, a));
  return r;
}

Shape Box::shape() const {
  Shape s;
  for (int d = 0; d < dims; ++d) s.push_back((*this)[d].size());
  return s;
}

Shape Box::offset() const {
  Shape s;
  for (int d = 0; d < dims; ++d) s.push_back((*this)[d].begin);
  return s;
}

int64_t Box::numel() const {
  int64_t n = 1;
  for (int d = 0; d < dims; ++d) n *= (*this)[d].size();
  return n;
}

Box whole_box(const Shape& shape) {
  Box box;
  box.dims = shape.dims();
  for (int d = 0; d < box.dims; ++d) box[d] = {0, shape[d]};
  return box;
}

Box intersection(const Box& a, const Box& b) {
  Box c;
  c.dims = a.dims;
  for (int d = 0; d < a.dims; ++d) {
    c[d] = {std::max(a[d].begin, b[d].begin), std::min(a[d].end, b[d].end)};
    c[d].end = std::max(c[d].begin, c[d].end);
  }
  return c;
}

Box local_box(const MeshShape& mesh, const Shape& shape, const Layout& layout, int rank) {
  Box box;
  box.dims = shape.dims();
  for (int d = 0; d < box.dims; ++d) box[d] = local_range(mesh, shape[d], layout.split[size_t(d)], rank);
  return box;
}

int64_t largest_part(const MeshShape& mesh, const Shape& shape, const Layout& layout) {
  int64_t n = 1;
  for (int d = 0; d < shape.dims(); ++d) {
    int64_t extent = shape[d];
    for (int a : layout.split[size_t(d)]) extent = largest_piece(extent, mesh.size(a));
    n *= extent;
  }
  return n;
}

Layout normalize(const char* who, const MeshShape& mesh, int dims, std::span<const Placement> placements,
                 const Layout& rest) {
  check(int(placements.size()) <= mesh.axes(), "[{}] {} placements on a mesh of {} axes ({})", who, placements.size(),
        mesh.axes(), mesh);
  std::array<AxisPlacement, max_axes> p;
  for (size_t a = 0; a < placements.size(); ++a) {
    p[a] = {int(a), placements[a]};
    if (p[a].placement.is_shard()) p[a].placement.dim = normalize_dim(who, p[a].placement.dim, dims);
  }
  return rest.with(std::span<const AxisPlacement>(p.data(), placements.size()));
}

Layout strip_narrow_axes(const MeshShape& mesh, const Layout& layout) {
  Layout out;
  AxisSet wide = mesh.wide(), unknown = (layout.sharded() | layout.partial) & ~mesh.all();
  if (unknown) fail("[Layout] the layout has placements on more axes than the mesh has ({})", to_string(mesh));
  for (size_t d = 0; d < max_dims; ++d)
    for (int a : layout.split[d])
      if (has(wide, a)) out.split[d].push_back(a);
  out.partial = layout.partial & wide;
  if (out.partial) out.reduce = layout.reduce;
  return out;
}

}  // namespace dtensor
