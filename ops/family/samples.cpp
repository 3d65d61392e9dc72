#include "ops/family/samples.h"

namespace dtensor::ops {

using Kind = SampleInput::Kind;

std::vector<Sample> unary_samples(Kind kind, const Attributes& a) {
  std::vector<Sample> list;
  for (const Shape& s : {Shape{5, 3}, Shape{}, Shape{0, 3}, Shape{1, 7}}) list.push_back({{{kind, s, 9}}, a});
  return list;
}

std::vector<Sample> binary_samples(Kind first, Kind second) {
  using Pair = std::pair<Shape, Shape>;
  std::vector<Sample> list;
  for (const auto& [a, b] : {Pair{{5, 3}, {5, 3}}, Pair{{5, 3}, {3}}, Pair{{5, 1}, {1, 4}}, Pair{{2, 5, 3}, {5, 1}},
                             Pair{{1}, {0}}, Pair{{}, {2, 3}}})
    list.push_back({{{first, a, 9}, {second, b, 9}}});
  return list;
}

std::vector<Sample> joined(std::vector<Sample> a, const std::vector<Sample>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace dtensor::ops
