// Matrix products by cuBLASLt, in row-major terms. No CUDA header is needed to include this one.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "dtensor/local/allocator.h"
#include "dtensor/rank.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct GemmState;  // gemm_state.h

struct GemmOperand {
  const void* data = nullptr;
  DType dtype = DType::f32;
  bool transposed = false;
  int64_t ld = 0;      // elements from row to row; of a transposed one from column to column
  int64_t stride = 0;  // elements from one of the batch to the next; 0 where all have the same
};

// C [M,N] = A [M,K] B [K,N], for each of a batch. With all that may be added, the product + C or what stands for it
// + bias -> aux, gelu -> C.
// f32 and f64: all of one type. bf16: A and B, summed in float32; C is bf16 or f32.
struct Product {
  int64_t M = 0, N = 0, K = 0;  // K of 0: the product is zeros
  GemmOperand A, B;
  void* C = nullptr;
  DType dtype = DType::f32;  // of C, bias and aux
  int64_t ldc = 0, stride = 0;
  int64_t batch = 1;
  bool accumulate = false;      // into what C has
  const void* added = nullptr;  // in place of what C has; as C lies
  bool tf32 = false;            // f32 factors may be rounded to 10 bits of mantissa
  const void* bias = nullptr;   // [N], added to each row
  bool gelu = false;            // in the tanh form
  void* aux = nullptr;          // receives what gelu is given; as C lies
};

// The products of one rank: on the stream of its allocator, with a workspace of 32 MiB. How a product is computed is
// decided once for its types, sizes, strides, alignments and epilogue: by the file that was loaded, else the first
// choice of cuBLASLt's heuristics. Every run of a program so takes the same algorithms, and split sums are added in
// float32 in a fixed order: the same bits. An epilogue that cuBLASLt does not have is a kernel of ours after it.
class Gemm {
 public:
  // `largest`: sizes above it are done in parts, because cuBLASLt counts rows and columns in 32 bits.
  explicit Gemm(std::shared_ptr<Allocator> allocator, int64_t largest = int64_t(1) << 30);
  ~Gemm();

  // Errors name `op`, the product, the call of cuBLASLt and its status.
  void run(std::string_view op, const Product& p);

  // How often cuBLASLt was asked for algorithms.
  int64_t decisions() const;

  // Times up to 16 algorithms for each product that ran and has none from a file, on random numbers that are not in the
  // cache, and keeps the fastest; how many products that were. Waits for the stream. Takes four times the device's L2
  // cache of memory, or the operands of the largest product. What a graph has captured stays as it is.
  int tune();
  // The algorithms of all products that were tuned or loaded. They are for this version of cuBLASLt and this kind of
  // device.
  void save(const std::string& path) const;
  // From now on these products take the file's algorithms. Errors: a file of another version or device, a line that is
  // no algorithm.
  void load(const std::string& path);

 private:
  std::unique_ptr<GemmState> state_;
};

// A rank's one, which its kernels use. Errors: a rank that is not on CUDA.
Gemm& gemm(Rank& rank);

}  // namespace dtensor::cuda
