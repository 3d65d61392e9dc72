// What is decided by time on a rank's device: algorithms of products, and engines of cuDNN's attention.
#pragma once

#include <string>
#include <vector>

#include "dtensor/rank.h"

namespace dtensor::cuda {

struct Tuned {
  int products = 0;
  std::vector<std::string> attention;  // a line about each kind of call
};
// Of all that ran and was neither tuned nor loaded: Gemm::tune and Cudnn::tune have more. Errors of these functions: a
// rank that is not on CUDA.
Tuned tune(Rank& rank);
// All that was tuned or loaded, in one file. What it has of attention is passed over where there is no cuDNN.
void save_tuned(Rank& rank, const std::string& path);
void load_tuned(Rank& rank, const std::string& path);

}  // namespace dtensor::cuda
