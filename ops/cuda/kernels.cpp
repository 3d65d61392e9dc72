#include "ops/cuda/kernels.h"

#include <algorithm>

namespace dtensor::cuda {

extern const KernelTable attention_kernels, dropout_kernels, elementwise_kernels, gather_kernels, rearrange_kernels;

namespace {

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> list = {&attention_kernels, &dropout_kernels, &elementwise_kernels,
                                                       &gather_kernels, &rearrange_kernels};
  return list;
}

}  // namespace

Kernel find_kernel(std::string_view op) {
  for (const KernelTable* table : tables())
    for (const NamedKernel& k : *table)
      if (k.op == op) return k.kernel;
  return nullptr;
}

std::vector<std::string_view> kernel_names() {
  std::vector<std::string_view> names;
  for (const KernelTable* table : tables())
    for (const NamedKernel& k : *table) names.push_back(k.op);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace dtensor::cuda
