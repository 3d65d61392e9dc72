#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {
namespace {

template <class T>
__device__ T sigmoid_of(T x) {
  return 1 / (1 + ::exp(-x));
}
template <class T>
__device__ T silu_of(T x) {
  return x / (1 + ::exp(-x));
}
// The derivative of x * s where s = sigmoid(t(x)) and z = x * t'(x).
template <class T>
__device__ T gate_derivative(T s, T z) {
  return s + s * z * (1 - s);
}

struct Silu {
  template <class T>
  __device__ T operator()(T x) const {
    return silu_of(x);
  }
};
struct SiluBackward {
  template <class T>
  __device__ T operator()(T dy, T x) const {
    return dy * gate_derivative(sigmoid_of(x), x);
  }
};
struct Sigmoid {
  template <class T>
  __device__ T operator()(T x) const {
    return sigmoid_of(x);
  }
};
struct Tanh {
  template <class T>
  __device__ T operator()(T x) const {
    return ::tanh(x);
  }
};

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
    return dy * gate_derivative(sigmoid_of(gelu_tanh_argument(x)), x * (x * x * T(3 * cubic) + T(slope)));
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
  __device__ T operator()(T dy, T x) const { return x * beta > threshold ? dy : dy * sigmoid_of(x * beta); }
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
    T s = sigmoid_of(gate);
    return {dy * up * gate_derivative(s, gate), dy * (gate * s)};
  }
};

}  // namespace

bool relu(const Elementwise& e) { return floating<1>(e, functors::Relu{}); }
bool relu_backward(const Elementwise& e) { return floating<2>(e, functors::ReluBackward{}); }
bool gelu(const Elementwise& e) { return floating<1>(e, Gelu{}); }
bool gelu_backward(const Elementwise& e) { return floating<2>(e, GeluBackward{}); }
bool gelu_tanh(const Elementwise& e) { return floating<1>(e, GeluTanh{}); }
bool gelu_tanh_backward(const Elementwise& e) { return floating<2>(e, GeluTanhBackward{}); }
bool silu(const Elementwise& e) { return floating<1>(e, Silu{}); }
bool silu_backward(const Elementwise& e) { return floating<2>(e, SiluBackward{}); }
bool tanh(const Elementwise& e) { return floating<1>(e, Tanh{}); }
bool sigmoid(const Elementwise& e) { return floating<1>(e, Sigmoid{}); }
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
