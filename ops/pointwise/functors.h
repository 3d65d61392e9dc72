// Functions of single elements that kernels of the CPU and the GPU share. Elements are float, double, int64_t or bool;
// on a GPU bf16 comes as float.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "dtensor/cuda/host_device.h"

namespace dtensor::functors {

// Integers wrap around, as unsigned ones do by definition.
template <class T>
using Wrapping = std::conditional_t<std::is_same_v<T, int64_t>, uint64_t, T>;

// What an integer is where there is no answer: the smallest, as x86-64 converts a NaN.
constexpr int64_t no_integer = INT64_MIN;

// --- Arithmetic

struct Add {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return T(Wrapping<T>(a) + Wrapping<T>(b));
  }
};
struct Subtract {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return T(Wrapping<T>(a) - Wrapping<T>(b));
  }
};
struct Multiply {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return T(Wrapping<T>(a) * Wrapping<T>(b));
  }
};
struct Divide {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return a / b;
  }
};
struct Maximum {  // NaN wins
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return ((a > b) | (a != a)) ? a : b;
  }
};
struct Minimum {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return ((a < b) | (a != a)) ? a : b;
  }
};
// (dy, a, b) -> dy where a > b, half of it where they are equal.
struct MaximumBackward {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T dy, T a, T b) const {
    return a < b ? T(0) : a == b ? dy / 2 : dy;
  }
};
// Of the sign that the divisor has, or the dividend. There is no integer remainder by 0.
template <bool of_divisor>
struct Remainder {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    T r;
    if constexpr (std::is_floating_point_v<T>) {
      r = std::fmod(a, b);
    } else {
      if (b == 0) return no_integer;
      r = b == -1 ? 0 : a % b;  // the smallest integer has no negative
    }
    return of_divisor && r != 0 && (r < 0) != (b < 0) ? r + b : r;
  }
};
struct Lerp {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b, T weight) const {
    return std::abs(weight) < T(0.5) ? a + weight * (b - a) : b - (b - a) * (1 - weight);
  }
};
template <class T>
struct AddMultiple {  // x + value * a * b
  T value;
  DTENSOR_HOST_DEVICE T operator()(T x, T a, T b) const {
    using W = Wrapping<T>;
    return T(W(x) + W(value) * W(a) * W(b));
  }
};

// --- Powers, by float64, whose error is lost in a float32 result; common exponents are products and roots.

struct Power {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a, T b) const {
    return T(std::pow(double(a), double(b)));
  }
};
struct PowerOf {
  double exponent;
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return T(std::pow(double(a), exponent));
  }
};
struct Cube {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return a * a * a;
  }
};
struct SquareRoot {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct ReciprocalSquareRoot {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return 1 / std::sqrt(a);
  }
};
struct Reciprocal {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return 1 / a;
  }
};
struct ReciprocalSquare {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    return 1 / (a * a);
  }
};

// --- Signs and bounds

struct Negative {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>)
      return -a;
    else
      return T(0 - Wrapping<T>(a));
  }
};
struct Absolute {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>)
      return std::abs(a);
    else
      return a < 0 ? Negative{}(a) : a;
  }
};
template <class T>
struct Clamp {
  T low, high;
  DTENSOR_HOST_DEVICE T operator()(T x) const {
    T y = x < low || low != low ? low : x;  // a bound that is NaN gives NaN
    return y > high || high != high ? high : y;
  }
};
template <class T>
struct ClampBackward {
  T low, high;
  bool has_low, has_high;
  DTENSOR_HOST_DEVICE T operator()(T dy, T x) const {
    return (!has_low || x > low) && (!has_high || x < high) ? dy : T(0);
  }
};

// --- Activations

template <class T>
DTENSOR_HOST_DEVICE T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}
// The derivative of x * s where s = sigmoid(t(x)) and z = x * t'(x).
template <class T>
DTENSOR_HOST_DEVICE T gate_derivative(T s, T z) {
  return s + s * z * (1 - s);
}

// --- Comparisons and logic

struct Equal {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a == b;
  }
};
struct NotEqual {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a != b;
  }
};
struct Less {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  DTENSOR_HOST_DEVICE bool operator()(T a, T b) const {
    return a >= b;
  }
};
struct And {
  DTENSOR_HOST_DEVICE bool operator()(bool a, bool b) const { return a & b; }
};
struct Or {
  DTENSOR_HOST_DEVICE bool operator()(bool a, bool b) const { return a | b; }
};
struct Where {
  template <class T>
  DTENSOR_HOST_DEVICE T operator()(bool condition, T a, T b) const {
    return condition ? a : b;
  }
};

// --- Casts. A conversion to an integer of what it cannot hold is undefined in C++.

template <class To>
struct Cast {
  template <class From>
  DTENSOR_HOST_DEVICE To operator()(From x) const {
    if constexpr (std::is_same_v<To, bool>)
      return x != From(0);
    else if constexpr (std::is_floating_point_v<From> && std::is_same_v<To, int64_t>)
      return x >= From(-0x1p63) && x < From(0x1p63) ? To(x) : no_integer;
    else
      return To(x);
  }
};

}  // namespace dtensor::functors
