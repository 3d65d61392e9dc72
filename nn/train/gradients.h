// The gradients of parameters: wanted, reduced, measured.
#pragma once

#include "nn/gradient_store.h"
#include "nn/module.h"

namespace dtensor::nn {

// Gradients of these parameters are wanted; those of one group are reduced together, as soon as they are complete.
void watch_parameters(GradientStore& store, const std::vector<Parameter*>& parameters);

// The gradients of parameters, brought to their stored layouts, all in as few launches as possible. Zeros where the
// loss does not depend on a parameter.
std::vector<DistributedTensor> reduce_gradients(GradientStore& store, const std::vector<Parameter*>& parameters);

// The Euclidean norm of all gradients, each parameter once: f64, Replicate, on the device. Parts of one layout are
// added first, so that there is one reduction per layout, all in one launch; what is Partial is reduced before. The
// host does not wait for it. Errors: none, or an undefined one.
DistributedTensor global_norm(const std::vector<DistributedTensor>& gradients);

// Contiguous and 16-byte aligned, as CUDA's kernels over many tensors need it.
Tensor aligned(const Tensor& t);

}  // namespace dtensor::nn
