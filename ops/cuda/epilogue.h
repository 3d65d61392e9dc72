// What follows a matrix product where cuBLASLt has no epilogue for it.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct Epilogue {
  int64_t batch, rows, columns, ld, stride;  // of the product; aux lies as it does
  const void* product;                       // null: zeros
  const void* bias;                          // [columns] or null
  bool gelu;                                 // in the tanh form
  void *aux, *out;                           // aux may be null; out may be the product
};

// product + bias -> aux, gelu -> out; of a floating type.
void run_epilogue(StreamHandle stream, DType dtype, const Epilogue& e);

}  // namespace dtensor::cuda
