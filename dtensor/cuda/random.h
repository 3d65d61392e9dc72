// Random numbers in device memory: of dtensor/random.h, the same as on the CPU, a normal one to the last bits of its
// logarithm and cosine.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// Where the elements of a part, in row-major order, are in the whole tensor: as runs of neighbours.
struct Part {
  static constexpr int max_dims = 8;
  int64_t n = 0;                  // elements of the part
  int64_t run = 1;                // elements of a run
  int64_t first = 0;              // the first element's row-major index in the whole
  int dims = 0;                   // of the array of runs
  int64_t size[max_dims] = {};    // the outermost first
  int64_t stride[max_dims] = {};  // from run to run, in elements of the whole
};

struct RandomFill {
  StreamHandle stream;
  uint64_t key;
  Part part;
  DType type;
  void* out;
};
void fill_normal(const RandomFill& to, double mean, double std);
void fill_uniform(const RandomFill& to, double low, double high);
void fill_bernoulli(const RandomFill& to, double p);

}  // namespace dtensor::cuda
