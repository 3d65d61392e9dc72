// Losses.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

enum class Reduction : uint8_t { none, sum, mean };
constexpr std::string_view name(Reduction r) {
  return r == Reduction::none ? "none" : r == Reduction::sum ? "sum" : "mean";
}

// Targets that count nothing.
struct Ignore {
  int64_t ignore_index;
  static constexpr auto fields() { return std::tuple(run_time("ignore_index", &Ignore::ignore_index)); }
};
struct Smoothed : Ignore {
  using Base = Ignore;
  double label_smoothing;
  static constexpr auto fields() {
    return std::tuple_cat(Ignore::fields(), std::tuple(field("label_smoothing", &Smoothed::label_smoothing)));
  }
};
struct LossRows : Smoothed {
  using Base = Smoothed;
  int64_t classes;
  static constexpr auto fields() {
    return std::tuple_cat(Smoothed::fields(), std::tuple(run_time("classes", &LossRows::classes)));
  }
};
struct CrossEntropy : Smoothed {
  using Base = Smoothed;
  Reduction reduction;
  static constexpr auto fields() {
    return std::tuple_cat(Smoothed::fields(), std::tuple(field("reduction", &CrossEntropy::reduction)));
  }
};
// `gradients`: those of a sum of losses are outputs too.
struct LinearCrossEntropy : CrossEntropy {
  using Base = CrossEntropy;
  int64_t chunk_rows;
  bool gradients;
  static constexpr auto fields() {
    return std::tuple_cat(CrossEntropy::fields(), std::tuple(field("chunk_rows", &LinearCrossEntropy::chunk_rows),
                                                             field("gradients", &LinearCrossEntropy::gradients)));
  }
};
// The type of the result; absent, that of the operand.
struct Scaled {
  std::optional<DType> dtype = {};
  static constexpr auto fields() { return std::tuple(field("dtype", &Scaled::dtype)); }
};

extern const Op cross_entropy_op, cross_entropy_rows_op, cross_entropy_forward_op, sum_exp_op, sum_below_op, pick_op,
    cross_entropy_backward_op, scaled_op, linear_cross_entropy_op;

struct CrossEntropyOptions {
  int64_t ignore_index = -100;  // targets that count nothing
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0;  // in [0,1]: this much of each target is shared by all classes alike
  int64_t class_dim = -1;      // PyTorch's is 1 where there is more than one dimension: [n, v, d1, ...]
};

// logits [..., v], target i64 [...] -> the negative log-likelihood: [...] for none, else one number, Replicate. The
// classes are the last dimension unless class_dim says another. The mean is over targets that are not ignored, on all
// ranks; NaN where there are none, as in PyTorch. The classes may be sharded (loss parallel): then an all-reduce of the
// rows' maxima, and one of two sums in one launch; rows sharded on other axes add one of [sum, count]. The gradient
// communicates nothing. A target outside [0, v) that is not ignored is an error on CPU. Partial logits are reduced
// once, before. Class weights and targets that are probabilities are not supported.
DistributedTensor cross_entropy(const DistributedTensor& logits, const DistributedTensor& target,
                                const CrossEntropyOptions& options = {});

struct LinearCrossEntropyOptions {
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;  // or sum
  double label_smoothing = 0;
  int64_t chunk_rows = 4096;  // of logits that exist at a time on a rank
};

// cross_entropy(linear(hidden, weight), target) of hidden [..., k], weight [v, k] and target i64 [...], without the
// logits of all rows: some rows at a time, and where gradients are recorded (no NoGrad) theirs too, which the backward
// pass only scales. Of bf16, the loss and the sums over chunks are f32. Chunks are made along a dimension of rows that
// no axis splits, or within the ranks' parts of one that they divide; where there is neither, the rows are one chunk.
// The classes may be sharded (rows of the weight): then each chunk has the all-reduces of cross_entropy; the gradients
// are left Partial, as those of linear are. Source: Hsu et al., "Liger Kernel" (2024).
DistributedTensor linear_cross_entropy(const DistributedTensor& hidden, const DistributedTensor& weight,
                                       const DistributedTensor& target, const LinearCrossEntropyOptions& options = {});

// For composites: logits [..., v], contiguous and not Partial -> of each row the loss, the maximum, the log of the sum
// of exp(x - maximum), and 1 where the target counts.
std::vector<DistributedTensor> cross_entropy_rows(const DistributedTensor& logits, const DistributedTensor& target,
                                                  const Smoothed& attributes);
// The value of "reduction".
Reduction reduction_of(Arguments& a);
// A loss of a Partial input would reduce it each time that it reads it: once, before. The gradient passes through.
DistributedTensor reduced_once(const char* who, const DistributedTensor& x);

// (input - target)^2, two floating tensors of one shape: all of them, or their sum or mean, Replicate. A mean of
// nothing is NaN.
DistributedTensor mse_loss(const DistributedTensor& input, const DistributedTensor& target,
                           Reduction reduction = Reduction::mean);

}  // namespace dtensor::ops
