#include "placement/prices.h"

#include "placement/missing.h"

namespace dtensor {
namespace {

// A layout in which each rank has all that those which differ from it on `axes` have under `layout`: dimensions are
// split as far as the first of these axes.
Layout held_together(Layout layout, AxisSet axes) {
  for (AxisList& list : layout.split) {
    AxisList outer;
    for (int i = 0; i < list.count && !has(axes, list.axis[size_t(i)]); ++i) outer.push_back(list.axis[size_t(i)]);
    list = outer;
  }
  return layout;
}

}  // namespace

Prices::Prices(const Propagation& p, const TensorSpec& end, bool is_source)
    : p_(p),
      end_(end),
      is_source_(is_source),
      plans_(p.mesh, end_.shape, end.dtype, p.cost, reduced_as(end.dtype, p.reduce_dtype)) {}

int64_t Prices::exact(const Layout& other) {
  if (other == end_.layout) return 0;
  Price& price = known_.try_emplace(other.code()).first->second;
  if (!price.exact) price = {plans_.plan(from(other), to(other)).bytes(), true};
  return price.bytes;
}

int64_t Prices::at_least(const Layout& other) {
  if (other == end_.layout) return 0;
  auto [it, is_new] = known_.try_emplace(other.code());
  if (is_new) it->second.bytes = bound(from(other), to(other));
  return it->second.bytes;
}

// Ranks that differ on axes which become Partial have one new part together: what all of them lack of it, one of them
// receives at least its share of.
int64_t Prices::bound(const Layout& s, const Layout& t) const {
  if (s.partial && t.partial && s.reduce != t.reduce) return 0;
  AxisSet made = t.partial & ~s.partial;
  if (made && !(s.partial & ~t.partial)) return plans_.least_without_sums(s, t);
  double together = p_.mesh.product(made);
  Contributions reduced;
  for (int a = 0; a < p_.mesh.axes(); ++a)
    if (has(s.partial & ~t.partial, a)) reduced.add(p_.mesh.size(a));
  double share = double(numel(end_.shape)) / p_.mesh.product(p_.mesh.wide() & ~(s.partial & t.partial));
  double part = double(largest_part(p_.mesh, end_.shape, t)) / together;
  double missing = double(most_missing(p_.mesh, end_.shape, held_together(s, made), t)) / together;
  return least_bytes(reduced.least(share, part, missing), end_.dtype);
}

}  // namespace dtensor
