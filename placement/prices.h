// What it costs to bring one tensor from its layout to others, or from others to the one wanted.
#pragma once

#include <cmath>
#include <unordered_map>

#include "placement/propagate.h"

namespace dtensor {

// Contributions that are summed, over some axes.
struct Contributions {
  double ranks = 1, steps = 0;  // steps: one less than the ranks of each axis, added up

  void add(int k) { ranks *= k, steps += k - 1; }
  void add(const Contributions& r) { ranks *= r.ranks, steps += r.steps; }

  // Elements that one rank receives at least, of whose new part of `part` elements `missing` were not there before.
  // `share` is what each rank has of the elements where all axes split them but those that stay Partial, which no plan
  // betters: the contributions to it come from all ranks, or if it is less than one element, one from every other rank
  // of each axis. What the rank has in the end came by this or by an exchange.
  double least(double share, double part, double missing) const {
    if (ranks == 1 || share == 0) return missing;
    return std::max((ranks - 1) * share, steps) + std::max(missing, part - std::max(share, 1.0));
  }
};

// The bytes of that many elements at least, whether they are reduced or only moved.
inline int64_t least_bytes(double elements, DType dtype) {
  return int64_t(std::ceil(elements * (1 - 1e-12))) * itemsize(dtype);
}

// Remembers what it found. The propagation must outlive it.
class Prices {
 public:
  Prices(const Propagation& p, const TensorSpec& end, bool is_source);

  const TensorSpec& end() const { return end_; }
  bool is_source() const { return is_source_; }

  // Bytes of the plan between `end` and the other layout.
  int64_t exact(const Layout& other);
  // The price where it is known; a lower bound of it otherwise.
  int64_t at_least(const Layout& other);

 private:
  struct Price {
    int64_t bytes = 0;
    bool exact = false;
  };

  const Layout& from(const Layout& other) const { return is_source_ ? end_.layout : other; }
  const Layout& to(const Layout& other) const { return is_source_ ? other : end_.layout; }
  int64_t bound(const Layout& s, const Layout& t) const;

  const Propagation& p_;
  TensorSpec end_;
  bool is_source_;
  Redistributions plans_;
  std::unordered_map<uint64_t, Price> known_;
};

}  // namespace dtensor
