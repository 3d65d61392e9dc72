#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {
namespace {

using functors::gate_derivative;
using functors::sigmoid;

template <class T>
__device__ T silu_of(T x) {
  return x / (1 + ::exp(-x));
}
// The normal distribution function, without cancellation.
template <class T>
__device__ T normal_cdf(T x) {
  return T(0.5) * ::erfc(x * T(-0.70710678118654752440));
}
struct Gelu {
  template <class T>
  __device__ T operator()(T x) const {
    return x * normal_cdf(x);
  }
};
struct GeluBackward {
  template <class T>
  __device__ T operator()(T dy, T x) const {
    return dy * (x * T(0.39894228040143267794) * ::exp(T(-0.5) * x * x) + normal_cdf(x));
  }
};

// gelu_tanh(x) = x * sigmoid(t), t = 2 * sqrt(2/pi) * (x + 0.044715 x^3).
constexpr double slope = 1.5957691216057307118, cubic = 0.044715 * slope;
template <class T>
__device__ T gelu_tanh_argument(T x) {
  return x * (x * x * T(cubic) + T(slope));
}
struct GeluTanh {
  template <class T>
  __device__ T operator()(T x) const {
    return x / (1 + ::exp(-gelu_tanh_argument(x)));
  }
};
struct GeluTanhBackward {
  template <class T>
  __device__ T operator()(T dy, T x) const {
    return dy * gate_derivative(sigmoid(gelu_tanh_argument(x)), x * (x * x * T(3 * cubic) + T(slope)));
  }
};

template <class T>
struct Softplus {
  T beta, threshold;
  __device__ T operator()(T x) const { return x * beta > threshold ? x : ::log1p(::exp(x * beta)) / beta; }
};
template <class T>
struct SoftplusBackward {
  T beta, threshold;
  __device__ T operator()(T dy, T x) const { return x * beta > threshold ? dy : dy * sigmoid(x * beta); }
};

struct Swiglu {
  template <class T>
  __device__ T operator()(T gate, T up) const {
    return silu_of(gate) * up;
  }
};
struct SwigluBackward {
  template <class T>
  __device__ Both<T> operator()(T dy, T gate, T up) const {
    T s = sigmoid(gate);
    return {dy * up * gate_derivative(s, gate), dy * (gate * s)};
  }
};

}  // namespace

bool clamp(const Elementwise& e) {
  return numbers_with<1>(e, [&](auto t) {
    using T = decltype(t);
    bool endless = std::is_same_v<T, int64_t> && e.parameter[1] >= 0x1p63;
    return functors::Clamp<T>{functors::Cast<T>{}(e.parameter[0]), endless ? T(INT64_MAX) : T(e.parameter[1])};
  });
}
bool clamp_backward(const Elementwise& e) {
  return floating_with<2>(e, [&](auto t) {
    using T = decltype(t);
    return functors::ClampBackward<T>{T(e.parameter[0]), T(e.parameter[1]), e.parameter[2] != 0, e.parameter[3] != 0};
  });
}
bool gelu(const Elementwise& e) { return floating<1>(e, Gelu{}); }
bool gelu_backward(const Elementwise& e) { return floating<2>(e, GeluBackward{}); }
bool gelu_tanh(const Elementwise& e) { return floating<1>(e, GeluTanh{}); }
bool gelu_tanh_backward(const Elementwise& e) { return floating<2>(e, GeluTanhBackward{}); }
bool softplus(const Elementwise& e) {
  return floating_with<1>(e, [&](auto t) {
    using T = decltype(t);
    return Softplus<T>{T(e.parameter[0]), T(e.parameter[1])};
  });
}
bool softplus_backward(const Elementwise& e) {
  return floating_with<2>(e, [&](auto t) {
    using T = decltype(t);
    return SoftplusBackward<T>{T(e.parameter[0]), T(e.parameter[1])};
  });
}
bool swiglu(const Elementwise& e) { return floating<2>(e, Swiglu{}); }
bool swiglu_backward(const Elementwise& e) {
  return floating_with<3, 2>(e, [](auto) { return SwigluBackward{}; });
}

}  // namespace dtensor::cuda
