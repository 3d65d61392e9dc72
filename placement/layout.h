// Layout: which part of a tensor each rank of a mesh holds. The one source of sizes (law 3).
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <span>
#include <vector>

#include "placement/dtype.h"
#include "placement/mesh_shape.h"
#include "placement/placement.h"
#include "placement/shape.h"

namespace dtensor {

// The mesh axes that split one tensor dimension, outermost first.
struct AxisList {
  uint8_t count = 0;
  std::array<uint8_t, max_axes> axis{};

  void push_back(int a) { axis[count++] = uint8_t(a); }
  void insert(int position, int a);
  const uint8_t* begin() const { return axis.data(); }
  const uint8_t* end() const { return axis.data() + count; }
  // The axes from position `from` on.
  AxisSet set(int from = 0) const {
    AxisSet s = 0;
    for (int i = from; i < count; ++i) s |= axis_bit(axis[size_t(i)]);
    return s;
  }
  friend bool operator==(const AxisList&, const AxisList&) = default;
};

// How a tensor lies along which mesh axis.
struct AxisPlacement {
  int axis;
  Placement placement;
};

// Every mesh axis is in exactly one place: in one `split` list (Shard), in `partial`, or nowhere (Replicate).
// Law 4: a dimension is split by an ordered list of axes, outermost first; placements given by mesh axis mean mesh
// order. All partial axes share one reduction: a max of sums and a sum of maxes differ, so reductions never mix.
struct Layout {
  std::array<AxisList, max_dims> split{};
  AxisSet partial = 0;
  Reduce reduce = Reduce::sum;

  Layout() = default;  // Replicate on every axis
  // One placement per mesh axis, in mesh order. Negative dimensions need normalize() before use.
  Layout(std::initializer_list<Placement> placements) : Layout(std::span(placements.begin(), placements.size())) {}
  explicit Layout(std::span<const Placement> placements);

  Placement operator[](int axis) const;
  // Some axes get other placements; the others keep theirs, and their order. Axes that are given Shard(d) stand there
  // in the order of the list, each where it was among the others, or else where mesh order puts it.
  Layout with(std::span<const AxisPlacement> changes) const;
  Layout with(int axis, Placement p) const { return with(std::array{AxisPlacement{axis, p}}); }
  // By name: layout.with(mesh, "tp", Shard(0)). Errors: as MeshShape::axis.
  Layout with(const MeshShape& mesh, std::string_view axis, Placement p) const;
  // The placement of `axis` becomes Shard(dim), innermost of that dimension: fully sharded after tensor parallel.
  Layout with_innermost(int axis, int dim) const;

  AxisSet sharded() const;
  bool is_replicated() const { return !partial && !sharded(); }
  // Whether every list is in mesh order.
  bool in_mesh_order() const;

  // The whole layout in one word, a byte per axis and one for the reduction: a name for caches.
  uint64_t code() const;
  friend bool operator==(const Layout&, const Layout&) = default;
};

// A half-open range of global indices.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Law 3, the torch.chunk rule: k pieces of ceil(n / k); trailing ones are smaller or empty.
inline int64_t largest_piece(int64_t n, int64_t k) { return (n + k - 1) / k; }
inline Range chunk(Range r, int k, int i) {
  int64_t size = largest_piece(r.size(), k), begin = std::min(r.begin + i * size, r.end);
  return {begin, std::min(begin + size, r.end)};
}
// The part of [0, n) that falls to `rank` when the axes of `list` split it, outermost first.
Range local_range(const MeshShape& mesh, int64_t n, const AxisList& list, int rank);

// What a rank holds: one range per dimension. Whatever the order of the axes: chunks of a range are ranges.
struct Box {
  std::array<Range, max_dims> range{};
  int dims = 0;

  Range& operator[](int d) { return range[size_t(d)]; }
  const Range& operator[](int d) const { return range[size_t(d)]; }
  Shape shape() const;
  Shape offset() const;
  int64_t numel() const;
  friend bool operator==(const Box&, const Box&) = default;
};
Box whole_box(const Shape& shape);
Box intersection(const Box& a, const Box& b);

// The type in which parts of a tensor lie in memory: contributions of bf16 to a sum, an average or a product are f32,
// so that the result is rounded once, whatever the mesh; unless `reduce_dtype` says bf16.
constexpr DType part_dtype(DType dtype, const Layout& layout, DType reduce_dtype = DType::f32) {
  bool exact = layout.reduce == Reduce::min || layout.reduce == Reduce::max;
  return dtype == DType::bf16 && layout.partial && !exact ? reduce_dtype : dtype;
}
// In which contributions travel to a reduction where those of bf16 lie in memory as `reduce_dtype`, f32 or bf16; none:
// as they lie there.
constexpr std::optional<DType> reduced_as(DType dtype, DType reduce_dtype) {
  return dtype == DType::bf16 && reduce_dtype == DType::bf16 ? std::optional(DType::bf16) : std::nullopt;
}

Box local_box(const MeshShape& mesh, const Shape& shape, const Layout& layout, int rank);
// Elements of the largest part. Rank 0 always holds it.
int64_t largest_part(const MeshShape& mesh, const Shape& shape, const Layout& layout);

// The layout of a tensor of `dims` dimensions with these placements, one per axis in mesh order; axes behind the last
// one lie as in `rest`. Negative dimensions count from the back. Errors: a dimension that does not exist, axes that the
// mesh has not.
Layout normalize(const char* who, const MeshShape& mesh, int dims, std::span<const Placement> placements,
                 const Layout& rest = {});
// The layout with axes of one rank replicated. Errors: axes that the mesh has not.
Layout strip_narrow_axes(const MeshShape& mesh, const Layout& layout);

}  // namespace dtensor
