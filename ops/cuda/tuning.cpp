#include "ops/cuda/tuning.h"

#include "ops/cuda/attention_backend.h"
#include "ops/cuda/gemm.h"

namespace dtensor::cuda {

Tuned tune(Rank& rank) {
  Tuned tuned{gemm(rank).tune(), {}};
  if (Cudnn* cudnn = find_cudnn(rank)) tuned.attention = cudnn->tune();
  return tuned;
}
void save_tuned(Rank& rank, const std::string& path) {
  gemm(rank).save(path);
  if (Cudnn* cudnn = find_cudnn(rank)) cudnn->save(path);
}
void load_tuned(Rank& rank, const std::string& path) {
  gemm(rank).load(path);
  if (Cudnn* cudnn = find_cudnn(rank)) cudnn->load(path);
}

}  // namespace dtensor::cuda
