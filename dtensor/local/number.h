// A number of any element type, exactly.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>

#include "dtensor/local/tensor.h"

namespace dtensor {

// A value for elements: integers stay integers, because a double does not hold every i64.
class Number {
 public:
  template <std::integral T>
  Number(T value) : whole_(true), integer_(int64_t(value)), real_(double(value)) {}
  template <std::floating_point T>
  Number(T value) : real_(double(value)) {}

  // In the element type. Errors: i64 of what is no integer. `who` is the public function for the error.
  template <class T>
  T as(const char* who) const {
    if constexpr (std::same_as<T, int64_t>) {
      bool fits = whole_ || (std::trunc(real_) == real_ && real_ >= -0x1p63 && real_ < 0x1p63);
      check(fits, "[{}] {} is not an i64", who, real_);
      return whole_ ? integer_ : int64_t(real_);
    } else if constexpr (std::same_as<T, bool>) {
      return real_ != 0;
    } else {
      return T(real_);
    }
  }

 private:
  bool whole_ = false;
  int64_t integer_ = 0;
  double real_ = 0;
};

}  // namespace dtensor
