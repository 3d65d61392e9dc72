// Tables of small meshes, layouts and tensors, and a second, naive account of who holds what, for tests to compare
// with.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "placement/layout.h"

namespace dtensor::testing {

inline uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

struct Random {
  uint64_t state;
  uint64_t next() { return mix(state++); }
  int below(int n) { return int(next() % uint64_t(n)); }
  // Magnitudes differ so much that the order of a sum shows in its bits.
  float rough() { return float(int(next() % 2000001) - 1000000) / float(1 << below(20)); }
};

// Axes a, b, c, ...
inline MeshShape mesh_of(const std::vector<int>& sizes) {
  std::vector<std::string> names;
  for (size_t a = 0; a < sizes.size(); ++a) names.push_back(std::string(1, char('a' + a)));
  return MeshShape(sizes, names);
}

// Every axis Replicate, Partial where asked for, or at any place of any dimension's order.
inline std::vector<Layout> all_layouts(int axes, int dims, bool with_partial = true, Reduce reduce = Reduce::sum) {
  std::vector<Layout> found{Layout{}};
  for (int a = 0; a < axes; ++a) {
    std::vector<Layout> next;
    for (const Layout& l : found) {
      next.push_back(l);
      if (with_partial) next.push_back(l), next.back().partial |= axis_bit(a), next.back().reduce = reduce;
      for (size_t d = 0; d < size_t(dims); ++d)
        for (int at = 0; at <= l.split[d].count; ++at) next.push_back(l), next.back().split[d].insert(at, a);
    }
    found = std::move(next);
  }
  return found;
}

inline std::vector<Shape> all_shapes(int dims, const std::vector<int64_t>& sizes) {
  std::vector<Shape> found{Shape{}};
  for (int d = 0; d < dims; ++d) {
    std::vector<Shape> next;
    for (const Shape& s : found)
      for (int64_t n : sizes) next.push_back(s), next.back().push_back(n);
    found = std::move(next);
  }
  return found;
}

// Row-major coordinates of a rank.
inline std::array<int, max_axes> coordinates(const MeshShape& mesh, int rank) {
  std::array<int, max_axes> c{};
  for (int a = mesh.axes() - 1; a >= 0; --a) c[size_t(a)] = rank % mesh.size(a), rank /= mesh.size(a);
  return c;
}

// Ranks that differ from this one on the axes of `set` only, in the order of ranks.
inline std::vector<int> group_of(const MeshShape& mesh, int rank, AxisSet set) {
  std::vector<int> ranks;
  auto mine = coordinates(mesh, rank);
  for (int r = 0; r < mesh.world(); ++r) {
    auto other = coordinates(mesh, r);
    bool same = true;
    for (size_t a = 0; a < max_axes; ++a) same &= has(set, int(a)) || other[a] == mine[a];
    if (same) ranks.push_back(r);
  }
  return ranks;
}

// The rank's place among those.
inline int place_of(const MeshShape& mesh, int rank, AxisSet set) {
  std::vector<int> group = group_of(mesh, rank, set);
  return int(std::find(group.begin(), group.end(), rank) - group.begin());
}

// torch.chunk on a list: pieces of ceil(n / k), the last ones smaller or missing.
inline std::vector<int64_t> chunk_of(const std::vector<int64_t>& list, int k, int i) {
  std::vector<std::vector<int64_t>> pieces(1);
  size_t size = (list.size() + size_t(k) - 1) / size_t(k);
  for (int64_t v : list) {
    if (pieces.back().size() == size) pieces.emplace_back();
    pieces.back().push_back(v);
  }
  return size_t(i) < pieces.size() ? pieces[size_t(i)] : std::vector<int64_t>{};
}

// The indices of a dimension of n that the rank holds.
inline std::vector<int64_t> indices(const MeshShape& mesh, int64_t n, const AxisList& list, int rank) {
  std::vector<int64_t> held;
  for (int64_t i = 0; i < n; ++i) held.push_back(i);
  for (int a : list) held = chunk_of(held, mesh.size(a), coordinates(mesh, rank)[size_t(a)]);
  return held;
}

// What a rank holds: the global row-major index of each of its elements, in local row-major order.
struct Part {
  std::vector<int64_t> shape, elements;
};

inline Part part_of(const MeshShape& mesh, const Shape& shape, const Layout& layout, int rank) {
  Part p{{}, {0}};
  for (int d = 0; d < shape.dims(); ++d) {
    std::vector<int64_t> held = indices(mesh, shape[d], layout.split[size_t(d)], rank), next;
    for (int64_t e : p.elements)
      for (int64_t i : held) next.push_back(e * shape[d] + i);
    p.shape.push_back(int64_t(held.size()));
    p.elements = std::move(next);
  }
  return p;
}

inline std::vector<Part> parts_of(const MeshShape& mesh, const Shape& shape, const Layout& layout) {
  std::vector<Part> parts;
  for (int r = 0; r < mesh.world(); ++r) parts.push_back(part_of(mesh, shape, layout, r));
  return parts;
}

constexpr Reduce all_reductions[] = {Reduce::sum, Reduce::avg, Reduce::product, Reduce::min, Reduce::max};

template <class T>
T combine(Reduce r, T a, T b) {
  return r == Reduce::product ? a * b : r == Reduce::min ? std::min(a, b) : r == Reduce::max ? std::max(a, b) : a + b;
}

// The balanced tree over values[first, first + n): the first half, then the rest.
template <class T>
T tree(Reduce r, const std::vector<T>& values, size_t first, size_t n) {
  if (n == 1) return values[first];
  return combine(r, tree(r, values, first, n / 2), tree(r, values, first + n / 2, n - n / 2));
}
template <class T>
T reduced(Reduce r, const std::vector<T>& values) {
  T v = tree(r, values, 0, values.size());
  return r == Reduce::avg ? T(v / T(values.size())) : v;
}

// What contributor `q` of `n` gives to element `e`: random whole numbers whose reduction is exact, in any order.
inline float exact_contribution(Reduce r, int n, int q, int64_t e, uint64_t seed) {
  int v = int(mix(mix(mix(seed) + uint64_t(q)) + uint64_t(e)) % 17) - 8;
  if (r == Reduce::avg) return float(v * n);
  if (r == Reduce::product) return v < -4 ? -1.f : v > 4 ? 2.f : 1.f + float(e % 3) * float(q == 0);
  return float(v);
}
// The same where the order of a sum shows.
inline float rough_contribution(Reduce, int, int q, int64_t e, uint64_t seed) {
  return Random{mix(mix(seed) + uint64_t(q)) + uint64_t(e)}.rough();
}
using Contribution = float (*)(Reduce, int n, int q, int64_t e, uint64_t seed);

// A tensor in layout `source` whose Partial axes hold random contributions.
struct Source {
  const MeshShape& mesh;
  const Shape& shape;
  Layout layout;
  uint64_t seed;
  Contribution contribution = exact_contribution;

  // What a rank gives to element e.
  float at(int rank, int64_t e) const {
    return contribution(layout.reduce, mesh.product(layout.partial), place_of(mesh, rank, layout.partial), e, seed);
  }
  std::vector<float> local(int rank) const {
    std::vector<float> values;
    int n = mesh.product(layout.partial), q = place_of(mesh, rank, layout.partial);
    for (int64_t e : part_of(mesh, shape, layout, rank).elements)
      values.push_back(contribution(layout.reduce, n, q, e, seed));
    return values;
  }
};

// Whether `locals` of all ranks are the source's value in layout `target`, with sums in the tree of ranks; else what
// is wrong. Partial axes of both ends keep their contributions; where new ones appear their reduction must be right.
inline std::string difference(const Source& source, const Layout& target,
                              const std::vector<std::vector<float>>& locals) {
  const MeshShape& mesh = source.mesh;
  const Layout& s = source.layout;
  AxisSet kept = s.reduce == target.reduce ? s.partial & target.partial : 0;
  AxisSet gone = s.partial & ~kept, made = target.partial & ~kept;
  int world = mesh.world(), n = mesh.product(s.partial);
  size_t whole = size_t(numel(source.shape));
  std::vector<std::vector<float>> at{size_t(world)};  // per rank, by global element
  std::vector<Part> parts = parts_of(mesh, source.shape, target);
  for (int r = 0; r < world; ++r) {
    const Part& p = parts[size_t(r)];
    if (p.elements.size() != locals[size_t(r)].size())
      return fmt::format("rank {} has {} elements, not {}", r, locals[size_t(r)].size(), p.elements.size());
    at[size_t(r)].resize(whole);
    for (size_t i = 0; i < p.elements.size(); ++i) at[size_t(r)][size_t(p.elements[i])] = locals[size_t(r)][i];
  }
  for (int r = 0; r < world; ++r) {
    std::vector<int> from = group_of(mesh, r, gone), to = group_of(mesh, r, made), places;
    for (int q : from) places.push_back(place_of(mesh, q, s.partial));
    std::vector<float> values(from.size()), now(to.size());
    for (int64_t e : parts[size_t(r)].elements) {
      for (size_t i = 0; i < from.size(); ++i) values[i] = source.contribution(s.reduce, n, places[i], e, source.seed);
      for (size_t i = 0; i < to.size(); ++i) now[i] = at[size_t(to[i])][size_t(e)];
      float want = reduced(s.reduce, values), got = reduced(target.reduce, now);
      if (std::memcmp(&want, &got, sizeof want) != 0)
        return fmt::format("rank {}, element {}: {} and not {}", r, e, got, want);
    }
  }
  return "";
}

}  // namespace dtensor::testing
