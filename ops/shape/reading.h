// How repeat, flip and roll read their input: for their kernels.
#pragma once

#include "ops/core/op.h"

namespace dtensor::ops {

// Index i of a dimension of this rank's part of the output reads the input at `at(i)`.
struct Reading {
  int64_t stride = 0;           // of the input
  int64_t first = 0, size = 1;  // (first + i) % size
  bool backwards = false;       // counted from the end

  int64_t at(int64_t i) const {
    int64_t forwards = (first + i) % size;
    return backwards ? size - 1 - forwards : forwards;
  }
};

// One for each dimension of y. Errors: a dimension of x that is read anew is not whole.
std::vector<Reading> repeat_readings(const Context& c, const Tensor& x, const Tensor& y);
std::vector<Reading> flip_readings(const Context& c, const Tensor& x, const Tensor& y);
std::vector<Reading> roll_readings(const Context& c, const Tensor& x, const Tensor& y);
// What reaches beyond a matrix does no more than its size.
int64_t clamped_diagonal(const Context& c);

}  // namespace dtensor::ops
