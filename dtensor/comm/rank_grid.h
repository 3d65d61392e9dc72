// RankGrid: ranks in a regular order, those along some axes of a mesh.
#pragma once

#include <compare>
#include <cstddef>
#include <vector>

namespace dtensor {

// Row-major, the last axis fastest. Describes any number of ranks without a list of them. The same ranks in the same
// order are equal, however they were put together.
class RankGrid {
 public:
  RankGrid() = default;  // rank 0
  explicit RankGrid(int first) : first_(first) {}
  // 0, 1, ..., n - 1
  static RankGrid whole(int n) { return RankGrid(0).with(n, 1); }

  // With an axis inside of the others: `size` ranks, `stride` apart.
  RankGrid with(int size, int stride) const {
    RankGrid g = *this;
    if (size == 1) return g;
    if (!g.axes_.empty() && g.axes_.back().stride == size * stride)
      g.axes_.back() = {g.axes_.back().size * size, stride};
    else
      g.axes_.push_back({size, stride});
    return g;
  }

  int size() const {
    int n = 1;
    for (Axis a : axes_) n *= a.size;
    return n;
  }
  int operator[](int index) const {
    int rank = first_;
    for (std::size_t a = axes_.size(); a-- > 0; index /= axes_[a].size) rank += index % axes_[a].size * axes_[a].stride;
    return rank;
  }
  // The index of `rank` in it, or -1.
  int find(int rank) const {
    for (int i = 0, n = size(); i < n; ++i)
      if ((*this)[i] == rank) return i;
    return -1;
  }
  std::vector<int> list() const {
    std::vector<int> ranks;
    for (int i = 0, n = size(); i < n; ++i) ranks.push_back((*this)[i]);
    return ranks;
  }

  friend auto operator<=>(const RankGrid&, const RankGrid&) = default;

 private:
  struct Axis {
    int size, stride;
    friend auto operator<=>(const Axis&, const Axis&) = default;
  };
  int first_ = 0;
  std::vector<Axis> axes_;
};

}  // namespace dtensor
