// Sizes of a tensor's dimensions: a small vector that never allocates.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "placement/error.h"

namespace dtensor {

constexpr int max_dims = 8;

// Up to max_dims integers: sizes, strides or offsets of the dimensions of a tensor, outermost first.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    for (int64_t n : sizes) push_back(n);
  }
  Shape(const std::vector<int64_t>& sizes) : Shape(sizes.begin(), sizes.end()) {}
  template <class It>
  Shape(It first, It last) {
    for (; first != last; ++first) push_back(*first);
  }
  static Shape filled(int dims, int64_t value) {
    Shape s;
    for (int d = 0; d < dims; ++d) s.push_back(value);
    return s;
  }

  int dims() const { return count_; }
  size_t size() const { return size_t(count_); }
  bool empty() const { return count_ == 0; }
  int64_t& operator[](int d) { return at_[size_t(d)]; }
  int64_t operator[](int d) const { return at_[size_t(d)]; }
  int64_t& back() { return at_[size_t(count_ - 1)]; }
  int64_t back() const { return at_[size_t(count_ - 1)]; }
  int64_t* begin() { return at_.data(); }
  int64_t* end() { return at_.data() + count_; }
  const int64_t* begin() const { return at_.data(); }
  const int64_t* end() const { return at_.data() + count_; }

  void push_back(int64_t n) {
    check(count_ < max_dims, "[Shape] more than {} dimensions", max_dims);
    at_[size_t(count_++)] = n;
  }
  void insert(int d, int64_t n) {
    push_back(n);
    std::rotate(begin() + d, end() - 1, end());
  }
  void erase(int d) {
    std::copy(begin() + d + 1, end(), begin() + d);
    --count_;
  }

  friend bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

 private:
  std::array<int64_t, max_dims> at_{};
  int count_ = 0;
};

// The number of elements: 1 without dimensions.
inline int64_t numel(const Shape& s) {
  int64_t n = 1;
  for (int64_t d : s) n *= d;
  return n;
}

// Strides of a contiguous, row-major tensor.
inline Shape contiguous_strides(const Shape& shape) {
  Shape s = shape;
  int64_t n = 1;
  for (int d = shape.dims() - 1; d >= 0; --d) {
    s[d] = n;
    n *= shape[d];
  }
  return s;
}

// "[8,16]", and "[]" without dimensions.
std::string to_string(const Shape& s);

// A dimension counted from the front, from one that may count from the back. `who` is the public function for the
// error.
inline int normalize_dim(const char* who, int64_t dim, int dims) {
  check(dim >= -dims && dim < dims, "[{}] dimension {} is out of range for {} dimensions", who, dim, dims);
  return int(dim < 0 ? dim + dims : dim);
}

}  // namespace dtensor

template <>
struct fmt::formatter<dtensor::Shape> : dtensor::Formatter<dtensor::Shape> {};
