// NumPy's .npy files: f32, f64, i64 and bool, as np.save and np.load exchange them.
// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3.
#pragma once

#include "dtensor/distributed_tensor.h"

namespace dtensor {

// Writes one array in C order (version 1). The file appears whole or not at all: it is written under another name in
// the same folder, then renamed. Errors: bf16, which NumPy has not; a meta tensor; a file that cannot be written.
void save_npy(const std::string& path, const Tensor& t);
// The whole value, written by rank 0; all ranks call it, and the file is there when it returns on any.
void save_npy(const std::string& path, const DistributedTensor& x);

// One array, C or Fortran order. Errors name the file: not there, not of this format, of another element type or byte
// order, of more than eight dimensions, shorter or longer than its header says.
Tensor load_npy(const std::string& path);
// Each rank reads its part only; nothing is communicated. On Partial axes as distribute(). On meta nothing but the
// header is read.
DistributedTensor load_npy(const std::string& path, const DeviceMesh& mesh, const Layout& layout);
DistributedTensor load_npy(const std::string& path, const DeviceMesh& mesh, std::string_view layout);

}  // namespace dtensor
