#include "ops/cuda/kernels.h"

namespace dtensor::cuda {

extern const KernelTable attention_kernels;
extern const KernelTable convolution_kernels;
extern const KernelTable dropout_kernels;
extern const KernelTable elementwise_kernels;
extern const KernelTable embedding_kernels;
extern const KernelTable gather_kernels;
extern const KernelTable gla_kernels;
extern const KernelTable loss_kernels;
extern const KernelTable matmul_kernels;
extern const KernelTable norm_kernels;
extern const KernelTable rearrange_kernels;
extern const KernelTable reduce_kernels;
extern const KernelTable rotary_kernels;
extern const KernelTable softmax_kernels;
extern const KernelTable statistics_kernels;

namespace {

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> list = {
      &attention_kernels, &convolution_kernels, &dropout_kernels, &elementwise_kernels, &embedding_kernels,
      &gather_kernels,    &gla_kernels,         &loss_kernels,    &matmul_kernels,      &norm_kernels,
      &rearrange_kernels, &reduce_kernels,      &rotary_kernels,  &softmax_kernels,     &statistics_kernels,
  };
  return list;
}

}  // namespace

Kernel find_kernel(const Op& op) {
  for (const KernelTable* table : tables())
    for (const CardKernel& k : *table)
      if (k.op->identity.key() == op.identity.key()) return k.kernel;
  return nullptr;
}

}  // namespace dtensor::cuda
