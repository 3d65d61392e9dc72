// Names and sizes of a mesh's axes, and the arithmetic of ranks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "placement/error.h"

namespace dtensor {

constexpr int max_axes = 6;

using AxisSet = uint32_t;  // bit a stands for mesh axis a

constexpr bool has(AxisSet set, int axis) { return set >> axis & 1; }
constexpr AxisSet axis_bit(int axis) { return AxisSet(1) << axis; }

// Where the ranks of an axis are: those that differ on this axis only are all inside one node of the machine, or some
// are on other nodes.
enum class AxisPlace : uint8_t { inside_node, across_nodes };
constexpr std::string_view name(AxisPlace p) { return p == AxisPlace::inside_node ? "inside a node" : "across nodes"; }

// Ranks are numbered row-major over the axes: the last axis runs fastest.
class MeshShape {
 public:
  MeshShape() = default;  // one rank, no axes
  // Errors: no or too many axes, sizes below 1, names that are repeated or not of letters, digits and _.
  MeshShape(std::vector<int> sizes, std::vector<std::string> names);

  // From "dp=2,tp=4".
  static MeshShape parse(std::string_view text);

  int axes() const { return int(sizes_.size()); }
  int size(int axis) const { return sizes_[size_t(axis)]; }
  const std::string& name(int axis) const { return names_[size_t(axis)]; }
  int world() const { return product(all()); }
  AxisSet all() const { return axis_bit(axes()) - 1; }
  // Axes of more than one rank: the only ones on which placements differ.
  AxisSet wide() const;
  // Number of ranks that differ on the axes of `set` only.
  int product(AxisSet set) const;
  // The axis of that name, or -1.
  int find(std::string_view name) const;
  // The axis of that name; an error that lists the names there are, and tells the nearest. `who` is the public function
  // for the error.
  int axis(std::string_view name, const char* who = "MeshShape") const;
  int coordinate(int rank, int axis) const;
  // The rank's index among those that differ from it on the axes of `set` only, row-major.
  int index_in(int rank, AxisSet set) const;
  // Those ranks, in that order.
  std::vector<int> group(int rank, AxisSet set) const;
  // The same mesh on nodes that have `ranks_per_node` consecutive ranks each; 0: one node has all. Errors: fewer than
  // 0.
  MeshShape on_nodes(int ranks_per_node) const;
  // Plans do not depend on it: the cost model's links say how fast an axis is.
  AxisPlace place(int axis) const { return has(across_, axis) ? AxisPlace::across_nodes : AxisPlace::inside_node; }
  // The mesh of the axes in `set`, each in its place.
  MeshShape select(AxisSet set) const;
  // "dp,tp"
  std::string names(AxisSet set) const;

  friend bool operator==(const MeshShape&, const MeshShape&) = default;

 private:
  std::vector<int> sizes_;
  std::vector<std::string> names_;
  AxisSet across_ = 0;  // axes that lead to other nodes
};

// "dp=2,tp=4"
std::string to_string(const MeshShape& mesh);

}  // namespace dtensor

template <>
struct fmt::formatter<dtensor::MeshShape> : dtensor::Formatter<dtensor::MeshShape> {};
