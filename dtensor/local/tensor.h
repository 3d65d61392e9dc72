// Tensor: one device's memory seen as an array with strides. No mesh, no gradient.
#pragma once

#include <iosfwd>
#include <memory>
#include <span>

#include "dtensor/local/allocator.h"
#include "dtensor/local/bfloat16.h"
#include "placement/dtype.h"
#include "placement/layout.h"
#include "placement/shape.h"

namespace dtensor {

// A handle: copies share their elements. Views (permute, narrow, ...) share storage too and are read-only by
// convention; whoever writes in place asks for unique() first.
class Tensor {
 public:
  Tensor() = default;  // undefined
  // Contiguous, contents undefined, where the allocator's memory is: on meta its bytes are counted and there are none.
  // `device` meta with an allocator of another device is a placeholder. Errors: not enough memory is left; a size is
  // negative, or the bytes are more than 2^62.
  Tensor(const std::shared_ptr<Allocator>& allocator, DType dtype, const Shape& shape, Device device = Device::cpu);
  // On meta, counted by nobody: stands for a tensor that gets its memory later.
  static Tensor placeholder(DType dtype, const Shape& shape) { return Tensor(nullptr, dtype, shape, Device::meta); }
  // On the heap of no rank: for tests and for values that outlive a mesh.
  template <class T>
  static Tensor of(const Shape& shape, std::span<const T> values);
  template <class T>
  static Tensor of(const Shape& shape, std::initializer_list<T> values) {
    return of<T>(shape, std::span<const T>(values.begin(), values.size()));
  }
  static Tensor zeros(const std::shared_ptr<Allocator>& allocator, DType dtype, const Shape& shape,
                      Device device = Device::cpu);

  bool defined() const { return defined_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int dims() const { return shape_.dims(); }
  int64_t size(int d) const { return shape_[d]; }
  int64_t numel() const { return dtensor::numel(shape_); }
  int64_t bytes() const { return numel() * itemsize(dtype_); }
  bool is_contiguous() const;
  bool unique() const { return storage_.unique(); }
  bool shares_storage(const Tensor& other) const { return storage_ == other.storage_; }

  // The first element, in host memory. Errors: another element type; a meta tensor, which has no value; a CUDA tensor,
  // whose elements only kernels reach: take its cpu().
  template <class T>
  T* data() const {
    check_data(dtype_of<T>::value);
    return reinterpret_cast<T*>(data_);
  }
  std::byte* bytes_data() const { return data_; }  // null on meta; of a CUDA tensor, an address on the device

  // Views. Preconditions are the caller's: shapes and ranges must fit.
  Tensor permute(std::span<const int> order) const;
  Tensor narrow(int dim, int64_t begin, int64_t size) const;
  Tensor part(const Box& box) const;  // the box's ranges of all dimensions
  Tensor as_strided(const Shape& shape, const Shape& strides) const;
  // The same elements in another shape, without moving them; undefined where strides do not allow it.
  Tensor view(const Shape& shape) const;
  // This tensor where it is contiguous, else a copy.
  Tensor contiguous() const;
  // A contiguous copy with storage of its own.
  Tensor clone() const;
  // A contiguous copy in the memory of another allocator; from CUDA to the host it is there when the call returns.
  Tensor to(const std::shared_ptr<Allocator>& other) const;
  // The same values in another floating type, rounded to the nearest; this tensor where it has that type.
  Tensor to(DType dtype) const;
  // This tensor where it is in host memory, else a copy there, for which the host waits.
  Tensor cpu() const;

  // The allocator of its bytes; null on meta.
  const std::shared_ptr<Allocator>& allocator() const { return storage_.allocator(); }

 private:
  void check_data(DType wanted) const;

  Storage storage_;
  std::byte* data_ = nullptr;
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
  bool defined_ = false;
};

// Copies elements of one shape and type, whatever the strides and devices. Nothing happens on meta.
void copy(const Tensor& from, const Tensor& to);
// Elements of floating types, rounded to the nearest; both tensors contiguous, of one shape and in the same memory.
// Nothing happens on meta.
void convert(const Tensor& from, const Tensor& to);
// Calls write(host tensor) where every element of `t` is to be written, and brings the elements to `t`'s device.
template <class F>
void write_on_host(const Tensor& t, const F& write) {
  if (t.device() == Device::cpu) return write(t);
  Tensor host(std::make_shared<Allocator>(), t.dtype(), t.shape());
  write(host);
  copy(host, t);
}
// Every element becomes `value`, converted to the tensor's type.
void fill(const Tensor& t, double value);
// Every element of a floating tensor times `factor`, in place.
void scale(const Tensor& t, double factor);
// What changes nothing in a reduction, bit for bit: -0 for a sum, as -0 + x is x, but 0 + -0 is not -0.
void fill_identity(const Tensor& t, Reduce reduce);
// Element i of a contiguous tensor as a double: for printing and tests.
double element(const Tensor& t, int64_t i);

// Type and shape, and the elements in nested brackets, as NumPy prints them: aligned, and of each dimension longer than
// six the first and last three where there are more than 1000 elements.
std::string to_string(const Tensor& t);
std::ostream& operator<<(std::ostream& out, const Tensor& t);

template <class T>
Tensor Tensor::of(const Shape& shape, std::span<const T> values) {
  check(dtensor::numel(shape) == int64_t(values.size()), "[Tensor::of] {} values for shape {}", values.size(), shape);
  Tensor t(std::make_shared<Allocator>(), dtype_of<T>::value, shape);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

}  // namespace dtensor
