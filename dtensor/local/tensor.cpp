#include "dtensor/local/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "dtensor/cuda/local.h"
#include "dtensor/cuda/runtime.h"

namespace dtensor {

namespace {

constexpr int64_t max_tensor_bytes = int64_t(1) << 62;

int64_t bytes_of(DType dtype, const Shape& shape) {
  int64_t bytes = itemsize(dtype);
  for (int64_t n : shape)
    if (n < 0 || __builtin_mul_overflow(bytes, n, &bytes) || bytes > max_tensor_bytes)
      fail("[Tensor] {}{} is no tensor: sizes are not negative, and make at most 2^62 bytes", name(dtype),
           to_string(shape));
  return bytes;
}

}  // namespace

Tensor::Tensor(const std::shared_ptr<Allocator>& allocator, DType dtype, const Shape& shape, Device device)
    : shape_(shape), dtype_(dtype), device_(device), defined_(true) {
  int64_t bytes = bytes_of(dtype, shape);
  strides_ = contiguous_strides(shape);
  bool placeholder = device == Device::meta && (!allocator || allocator->device() != Device::meta);
  if (placeholder) return;
  device_ = allocator->device();
  storage_ = Storage(allocator, bytes);
  if (device_ != Device::meta) data_ = storage_.data();  // meta has numbers of blocks
}

Tensor Tensor::zeros(const std::shared_ptr<Allocator>& allocator, DType dtype, const Shape& shape, Device device) {
  Tensor t(allocator, dtype, shape, device);
  if (t.device_ == Device::cuda)
    cuda::zero(t.data_, t.bytes(), allocator->stream());
  else if (t.data_)
    std::memset(t.data_, 0, size_t(t.bytes()));
  return t;
}

void Tensor::check_data(DType wanted) const {
  if (!defined_) fail("[Tensor::data] the tensor is not defined");
  if (dtype_ != wanted)
    fail("[Tensor::data] asked for {}, but the tensor is {}{}", name(wanted), name(dtype_), to_string(shape_));
  if (device_ == Device::meta) fail("[Tensor::data] a meta tensor has no value: {}{}", name(dtype_), to_string(shape_));
  if (device_ == Device::cuda)
    fail("[Tensor::data] {}{} is on cuda, where only kernels reach its elements: take its cpu()", name(dtype_),
         to_string(shape_));
}

bool Tensor::is_contiguous() const {
  int64_t n = 1;
  for (int d = dims() - 1; d >= 0; --d) {
    if (shape_[d] != 1 && strides_[d] != n) return dtensor::numel(shape_) == 0;
    n *= shape_[d];
  }
  return true;
}

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides) const {
  Tensor t = *this;
  t.shape_ = shape, t.strides_ = strides;
  return t;
}

Tensor Tensor::permute(std::span<const int> order) const {
  Tensor t = *this;
  for (size_t d = 0; d < order.size(); ++d) {
    t.shape_[int(d)] = shape_[order[d]];
    t.strides_[int(d)] = strides_[order[d]];
  }
  return t;
}

Tensor Tensor::narrow(int dim, int64_t begin, int64_t size) const {
  Tensor t = *this;
  t.shape_[dim] = size;
  if (data_) t.data_ += begin * strides_[dim] * itemsize(dtype_);
  return t;
}

Tensor Tensor::part(const Box& box) const {
  Tensor t = *this;
  for (int d = 0; d < box.dims; ++d) t = t.narrow(d, box[d].begin, box[d].size());
  return t;
}

// As in NumPy: runs of dimensions that are contiguous among themselves may be regrouped.
Tensor Tensor::view(const Shape& shape) const {
  if (is_contiguous()) return as_strided(shape, contiguous_strides(shape));
  Shape strides = Shape::filled(shape.dims(), 0);
  int to = shape.dims() - 1, d = dims() - 1;
  while (d >= 0) {
    int64_t size = shape_[d], inner = strides_[d];
    while (d > 0 && (shape_[d - 1] == 1 || size == 1 || strides_[d - 1] == inner * size)) {
      if (size == 1) inner = strides_[d - 1];
      size *= shape_[--d];
    }
    int64_t left = size, stride = inner;
    while (to >= 0 && left % std::max<int64_t>(shape[to], 1) == 0 && (left > 1 || shape[to] == 1)) {
      strides[to] = stride;
      stride *= shape[to], left /= shape[to], --to;
    }
    if (left != 1) return {};
    --d;
  }
  return to < 0 ? as_strided(shape, strides) : Tensor();
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor t(allocator(), dtype_, shape_, device_);
  copy(*this, t);
  return t;
}

Tensor Tensor::to(const std::shared_ptr<Allocator>& other) const {
  Tensor t(other, dtype_, shape_, device_);
  copy(*this, t);
  return t;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor from = contiguous(), t(allocator(), dtype, shape_, device_);
  convert(from, t);
  return t;
}

Tensor Tensor::cpu() const { return device_ == Device::cuda ? to(std::make_shared<Allocator>()) : *this; }

namespace {

// Copies dimension d and those inside it.
template <class T>
void copy_from(const T* from, T* to, const Shape& shape, const Shape& fs, const Shape& ts, int d) {
  if (d == shape.dims()) {
    *to = *from;
    return;
  }
  int64_t n = shape[d], f = fs[d], t = ts[d];
  if (d == shape.dims() - 1) {
    if (f == 1 && t == 1)
      std::memcpy(to, from, size_t(n) * sizeof(T));
    else
      for (int64_t i = 0; i < n; ++i) to[i * t] = from[i * f];
    return;
  }
  for (int64_t i = 0; i < n; ++i) copy_from(from + i * f, to + i * t, shape, fs, ts, d + 1);
}

template <class T>
void copy_as(const Tensor& from, const Tensor& to, const Shape& shape, const Shape& fs, const Shape& ts) {
  copy_from(reinterpret_cast<const T*>(from.bytes_data()), reinterpret_cast<T*>(to.bytes_data()), shape, fs, ts, 0);
}

// One of the two is on CUDA. Bytes cross as one run, so what is not contiguous is copied once more where it is.
void copy_across(const Tensor& from, const Tensor& to) {
  if (!from.is_contiguous()) return copy_across(from.clone(), to);
  if (!to.is_contiguous()) {
    Tensor whole(to.allocator(), to.dtype(), to.shape());
    copy_across(from, whole);
    return copy(whole, to);
  }
  const Tensor& on_device = from.device() == Device::cuda ? from : to;
  cuda::copy(to.bytes_data(), from.bytes_data(), from.bytes(), on_device.allocator()->stream());
  const Tensor& on_host = from.device() == Device::cpu ? from : to;
  if (to.device() == Device::cpu || on_host.allocator()->is_pinned())  // pinned memory is read when the copy runs
    cuda::synchronize(on_device.allocator()->stream());
}

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  if (from.shape() != to.shape() || from.dtype() != to.dtype())
    fail("[copy] {}{} to {}{}", name(from.dtype()), to_string(from.shape()), name(to.dtype()), to_string(to.shape()));
  if (from.device() == Device::meta || to.device() == Device::meta || from.numel() == 0) return;
  if (from.device() != to.device()) return copy_across(from, to);
  // Neighbouring dimensions that are one run in both tensors are copied as one.
  Shape shape, fs, ts;
  for (int d = 0; d < from.dims(); ++d) {
    if (from.size(d) == 1) continue;
    if (!shape.empty() && fs.back() == from.strides()[d] * from.size(d) &&
        ts.back() == to.strides()[d] * from.size(d)) {
      shape.back() *= from.size(d), fs.back() = from.strides()[d], ts.back() = to.strides()[d];
    } else {
      shape.push_back(from.size(d)), fs.push_back(from.strides()[d]), ts.push_back(to.strides()[d]);
    }
  }
  if (from.device() == Device::cuda)
    return cuda::copy_strided(to.allocator()->stream(), itemsize(from.dtype()), shape.dims(), shape.begin(), fs.begin(),
                              ts.begin(), from.bytes_data(), to.bytes_data());
  switch (itemsize(from.dtype())) {
    case 8:
      return copy_as<uint64_t>(from, to, shape, fs, ts);
    case 4:
      return copy_as<uint32_t>(from, to, shape, fs, ts);
    case 2:
      return copy_as<uint16_t>(from, to, shape, fs, ts);
    default:
      return copy_as<uint8_t>(from, to, shape, fs, ts);
  }
}

namespace {

// Calls f with a number of the C++ type of the elements.
template <class F>
void with_element_type(DType t, F f) {
  switch (t) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(BFloat16{});
    case DType::i64:
      return f(int64_t{});
    case DType::boolean:
      return f(bool{});
  }
}

template <class T>
void fill_with(const Tensor& t, T value) {
  if (t.device() == Device::cuda)
    cuda::fill(t.allocator()->stream(), sizeof(T), t.numel(), &value, t.bytes_data());
  else
    std::fill_n(t.data<T>(), t.numel(), value);
}

}  // namespace

void fill(const Tensor& t, double value) {
  if (t.device() == Device::meta) return;
  check(t.is_contiguous(), "[fill] the tensor is not contiguous");
  with_element_type(t.dtype(), [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, bool>)
      fill_with(t, value != 0);
    else if constexpr (std::is_same_v<T, BFloat16>)
      fill_with(t, BFloat16(float(value)));
    else
      fill_with(t, T(value));
  });
}

void convert(const Tensor& from, const Tensor& to) {
  check(from.shape() == to.shape() && from.is_contiguous() && to.is_contiguous() && is_floating(from.dtype()) &&
            is_floating(to.dtype()) && from.device() == to.device(),
        "[convert] {}{} on {} to {}{} on {}: both are floating, contiguous, of one shape and on one device",
        name(from.dtype()), from.shape(), name(from.device()), name(to.dtype()), to.shape(), name(to.device()));
  if (from.device() == Device::meta) return;
  if (from.device() == Device::cuda)
    return cuda::convert(to.allocator()->stream(), from.dtype(), to.dtype(), from.numel(), from.bytes_data(),
                         to.bytes_data());
  with_element_type(from.dtype(), [&](auto f) {
    with_element_type(to.dtype(), [&](auto t) {
      using From = decltype(f);
      using To = decltype(t);
      if constexpr (is_floating(dtype_of<From>::value) && is_floating(dtype_of<To>::value)) {
        using Through = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
        std::transform(from.data<From>(), from.data<From>() + from.numel(), to.data<To>(),
                       [](From x) { return To(Through(x)); });
      }
    });
  });
}

void scale(const Tensor& t, double factor) {
  if (t.device() == Device::meta) return;
  check(is_floating(t.dtype()) && t.is_contiguous(), "[scale] {}{} is not floating and contiguous", name(t.dtype()),
        t.shape());
  if (t.device() == Device::cuda)
    return cuda::scale(t.allocator()->stream(), t.dtype(), t.numel(), factor, t.bytes_data());
  with_element_type(t.dtype(), [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_floating_point_v<T>)
      for (T& x : std::span(t.data<T>(), size_t(t.numel()))) x *= T(factor);
    else if constexpr (std::is_same_v<T, BFloat16>)
      for (T& x : std::span(t.data<T>(), size_t(t.numel()))) x = T(x * float(factor));
  });
}

void fill_identity(const Tensor& t, Reduce r) {
  bool extreme = r == Reduce::min || r == Reduce::max;
  if (extreme && t.dtype() == DType::i64 && t.device() != Device::meta) {  // no double is that large
    using Limits = std::numeric_limits<int64_t>;
    return fill_with(t, r == Reduce::min ? Limits::max() : Limits::min());
  }
  double most = t.dtype() == DType::boolean ? 1 : std::numeric_limits<double>::infinity();
  double least = t.dtype() == DType::boolean ? 0 : -most;
  fill(t, r == Reduce::product ? 1 : r == Reduce::min ? most : r == Reduce::max ? least : -0.0);
}

double element(const Tensor& t, int64_t i) {
  if (t.device() == Device::cuda) return element(t.view({t.numel()}).narrow(0, i, 1).cpu(), 0);
  double value = 0;
  with_element_type(t.dtype(), [&](auto type) { value = double(t.data<decltype(type)>()[i]); });
  return value;
}

}  // namespace dtensor
