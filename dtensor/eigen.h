// Eigen maps of tensors: arithmetic on a local part without a copy. Optional: needs Eigen 3.4 where it is included.
#pragma once

#include <Eigen/Core>

#include "dtensor/local/tensor.h"

namespace dtensor::eigen {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

// The number of elements of t[d]; errors where a map is not possible.
inline Eigen::Index mapped_size(const char* who, const Tensor& t, int d, int dims) {
  if (t.dims() != dims)
    fail("[{}] {}{} has {} dimensions, not {}", who, name(t.dtype()), to_string(t.shape()), t.dims(), dims);
  check(t.is_contiguous(), "[{}] the tensor is not contiguous: take its contiguous()", who);
  return Eigen::Index(t.size(d));
}

// A tensor of two (one) dimensions as Eigen sees it, sharing its elements, which must outlive the map. A tensor that
// is const gives a map that is, as x.local() does; x.local_for_writing() gives one to write to.
// Errors: other dimensions, another element type, not contiguous, meta.
template <class T>
Eigen::Map<const Matrix<T>> matrix(const Tensor& t) {
  Eigen::Index rows = mapped_size("eigen::matrix", t, 0, 2);
  return {t.data<T>(), rows, mapped_size("eigen::matrix", t, 1, 2)};
}
template <class T>
Eigen::Map<Matrix<T>> matrix(Tensor& t) {
  Eigen::Index rows = mapped_size("eigen::matrix", t, 0, 2);
  return {t.data<T>(), rows, mapped_size("eigen::matrix", t, 1, 2)};
}
template <class T>
Eigen::Map<const Vector<T>> vector(const Tensor& t) {
  return {t.data<T>(), mapped_size("eigen::vector", t, 0, 1)};
}
template <class T>
Eigen::Map<Vector<T>> vector(Tensor& t) {
  return {t.data<T>(), mapped_size("eigen::vector", t, 0, 1)};
}

// The value of a matrix, array or expression, copied: of two dimensions, of one where Eigen knows that it is a vector.
template <class Derived>
Tensor tensor(const Eigen::DenseBase<Derived>& m) {
  using T = typename Derived::Scalar;
  constexpr bool is_vector = Derived::IsVectorAtCompileTime;
  Tensor t(std::make_shared<Allocator>(), dtype_of<T>::value, is_vector ? Shape{m.size()} : Shape{m.rows(), m.cols()});
  // assigned element by element of the type Eigen evaluates, so that arrays and matrices both serve
  Eigen::Map<Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(t.data<T>(), m.rows(), m.cols()) =
      m.derived().array();
  return t;
}

}  // namespace dtensor::eigen
