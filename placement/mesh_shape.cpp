#include "placement/mesh_shape.h"

#include <algorithm>
#include <charconv>

#include "placement/nearest.h"

namespace dtensor {

MeshShape::MeshShape(std::vector<int> sizes, std::vector<std::string> names)
    : sizes_(std::move(sizes)), names_(std::move(names)) {
  check(sizes_.size() == names_.size(), "[MeshShape] {} sizes and {} names", sizes_.size(), names_.size());
  check(!sizes_.empty(), "[MeshShape] a mesh without axes: one rank is an axis of size 1, as in dp=1");
  check(sizes_.size() <= size_t(max_axes), "[MeshShape] {} axes; at most {} are supported", sizes_.size(), max_axes);
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
  for (int a = 0; a < axes(); ++a) {
    check(size(a) >= 1, "[MeshShape] axis \"{}\" has size {}; a size is at least 1", name(a), size(a));
    check(!name(a).empty() && name(a).find_first_not_of(letters) == std::string::npos,
          "[MeshShape] \"{}\" is no axis name: use letters, digits and _", name(a));
    check(find(name(a)) == a, "[MeshShape] axis \"{}\" is named twice", name(a));
  }
  int64_t world = 1;
  for (int n : sizes_) world = std::min<int64_t>(world * n, int64_t(1) << 32);
  check(world < int64_t(1) << 31, "[MeshShape] a mesh of more than 2^31 ranks");
}

MeshShape MeshShape::parse(std::string_view text) {
  std::vector<int> sizes;
  std::vector<std::string> names;
  for (size_t at = 0; at <= text.size();) {
    size_t comma = std::min(text.find(',', at), text.size()), equals = text.find('=', at);
    int n = 0;
    bool ok = equals < comma;
    if (ok) {
      auto [end, error] = std::from_chars(text.data() + equals + 1, text.data() + comma, n);
      ok = error == std::errc() && end == text.data() + comma;
    }
    check(ok, "[mesh] \"{}\" is no mesh: write axes and sizes as in dp=2,tp=4", text);
    names.emplace_back(text.substr(at, equals - at));
    sizes.push_back(n);
    at = comma + 1;
  }
  return MeshShape(std::move(sizes), std::move(names));
}

AxisSet MeshShape::wide() const {
  AxisSet s = 0;
  for (int a = 0; a < axes(); ++a)
    if (size(a) > 1) s |= axis_bit(a);
  return s;
}

int MeshShape::product(AxisSet set) const {
  int n = 1;
  for (int a = 0; a < axes(); ++a)
    if (has(set, a)) n *= size(a);
  return n;
}

int MeshShape::find(std::string_view name) const {
  auto it = std::find(names_.begin(), names_.end(), name);
  return it == names_.end() ? -1 : int(it - names_.begin());
}

int MeshShape::axis(std::string_view name, const char* who) const {
  int a = find(name);
  if (a < 0) fail("[{}] the mesh has no axis \"{}\": it is {}{}", who, name, *this, nearest_hint(name, names_));
  return a;
}

int MeshShape::coordinate(int rank, int axis) const {
  for (int a = axes() - 1; a > axis; --a) rank /= size(a);
  return rank % size(axis);
}

int MeshShape::index_in(int rank, AxisSet set) const {
  int i = 0;
  for (int a = 0; a < axes(); ++a)
    if (has(set, a)) i = i * size(a) + coordinate(rank, a);
  return i;
}

std::vector<int> MeshShape::group(int rank, AxisSet set) const {
  std::vector<int> stride(sizes_.size(), 1);
  for (int a = axes() - 2; a >= 0; --a) stride[size_t(a)] = stride[size_t(a + 1)] * size(a + 1);
  int first = rank;
  for (int a = 0; a < axes(); ++a)
    if (has(set, a)) first -= coordinate(rank, a) * stride[size_t(a)];
  std::vector<int> ranks{first};
  for (int a = 0; a < axes(); ++a) {
    if (!has(set, a)) continue;
    std::vector<int> next;
    for (int r : ranks)
      for (int i = 0; i < size(a); ++i) next.push_back(r + i * stride[size_t(a)]);
    ranks = std::move(next);
  }
  return ranks;
}

MeshShape MeshShape::on_nodes(int ranks_per_node) const {
  check(ranks_per_node >= 0, "[MeshShape::on_nodes] {} ranks per node; write 0 where one node has all ranks",
        ranks_per_node);
  MeshShape m = *this;
  m.across_ = 0;
  int64_t block = 1;  // consecutive ranks that this axis and those after it span
  for (int a = axes() - 1; a >= 0; --a) {
    block *= size(a);
    bool inside = ranks_per_node == 0 || ranks_per_node >= world() || ranks_per_node % block == 0;
    if (size(a) > 1 && !inside) m.across_ |= axis_bit(a);
  }
  return m;
}

MeshShape MeshShape::select(AxisSet set) const {
  MeshShape m;
  for (int a = 0; a < axes(); ++a) {
    if (!has(set, a)) continue;
    if (has(across_, a)) m.across_ |= axis_bit(m.axes());
    m.sizes_.push_back(size(a)), m.names_.push_back(name(a));
  }
  return m;
}

std::string MeshShape::names(AxisSet set) const {
  std::string text;
  for (int a = 0; a < axes(); ++a)
    if (has(set, a)) text += (text.empty() ? "" : ",") + name(a);
  return text;
}

std::string to_string(const MeshShape& mesh) {
  std::string text;
  for (int a = 0; a < mesh.axes(); ++a) text += fmt::format("{}{}={}", a ? "," : "", mesh.name(a), mesh.size(a));
  return text.empty() ? "one rank" : text;
}

}  // namespace dtensor
