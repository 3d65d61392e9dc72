// Row kernels of a Llama: RMS norm, SwiGLU, rotary embedding, cross entropy, AdamW. Bits as in rows.h: nothing depends
// on which rows or elements share a call, nor on the instruction set. T: float or double.
//
// Rows are contiguous and follow each other without a gap, unless a stride is given. An output may be the same array as
// an input, but may not overlap one otherwise.
#pragma once
#include <cstdint>

namespace dtensor::cpu {

/// y = (x * rstd) * w by row, rstd = 1 / sqrt(mean(x^2) + eps). x, y: [rows, d]; w: [d]; rstd: [rows], written.
/// The sum of squares has leaves(d) leaves. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
template <class T>
void rms_norm(int64_t rows, int64_t d, const T* x, const T* w, double eps, T* y, T* rstd);

/// dx = rstd * (dy*w - x * (rstd^2 / d) * sum(dy*w*x)), all [rows, d].
template <class T>
void rms_norm_backward(int64_t rows, int64_t d, const T* dy, const T* x, const T* w, const T* rstd, T* dx);

/// dw[j] = the sum over the rows of dy * (x * rstd), for columns begin <= j < end of [rows, d]: callers may split the
/// columns. The law of gemm.h over the rows, with l leaves (0 for leaves(rows)): equal parts of the rows add up to the
/// bits of the whole.
template <class T>
void rms_norm_backward_weight(int64_t rows, int64_t d, int64_t begin, int64_t end, const T* dy, const T* x,
                              const T* rstd, T* dw, int64_t l = 0);

/// y = silu(gate) * up, n elements. Source: Shazeer, "GLU Variants Improve Transformer" (2020).
template <class T>
void swiglu(int64_t n, const T* gate, const T* up, T* y);

/// dgate = dy * up * silu'(gate), dup = dy * silu(gate).
template <class T>
void swiglu_backward(int64_t n, const T* dy, const T* gate, const T* up, T* dgate, T* dup);

/// scale * cos and sin of p * frequencies[i] for each of n positions p and i < pairs: [n, pairs] each. Computed in
/// float64 and rounded once, so a value does not depend on its neighbours.
template <class T>
void rotary_table(int64_t n, const int64_t* positions, int64_t pairs, const double* frequencies, double scale, T* cos,
                  T* sin);

/// Elements from one batch entry, position or head to the next; a head's d elements are contiguous.
struct Strides {
  int64_t batch, position, head;
};

/// Rotates the pairs (i, i + h) of every head by the angle of its position, with h = pairs <= d/2:
///   y[i] = x[i]*cos[i] - x[i+h]*sin[i],  y[i+h] = x[i+h]*cos[i] + x[i]*sin[i];
/// elements from 2h on stay as they are.
/// cos, sin: [positions, pairs], row p for position p of x. inverse: by the negative angle, which is also the gradient.
/// y may be x, with the same strides. Source: Su et al., "RoFormer" (2021), in Hugging Face's rotate_half order.
template <class T>
void rotary(int64_t batch, int64_t positions, int64_t heads, int64_t d, int64_t pairs, const T* x, Strides x_strides,
            const T* cos, const T* sin, bool inverse, T* y, Strides y_strides);

/// Gradient of logsumexp(x) - x[target] for a row's v columns of the vocabulary, which may be a shard of it:
///   dx[i] = (exp((x[i] - max) - log_sum) - (i == target)) * scale, where logsumexp = max + log_sum.
/// max and log_sum apart: their sum would be rounded at the size of the logits. target: the column in this shard, -1 if
/// it is elsewhere. Forward: max, then the log of sum_exp, of rows.h.
template <class T>
void cross_entropy_backward(int64_t v, const T* x, double max, double log_sum, int64_t target, double scale, T* dx);

/// The numbers of one AdamW step, all rounded to T once. correction = 1 - beta^step. grad_scale multiplies the gradient
/// (a clipping factor, or 1).
struct AdamW {
  double lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};

/// One step for n elements, updating param, exp_avg and exp_avg_sq; PyTorch's AdamW:
///   g = grad * grad_scale,  p *= 1 - lr*weight_decay,  m += (1 - beta1) * (g - m),  v = beta2*v + (1 - beta2)*g^2,
///   p -= lr/correction1 * m / (sqrt(v)/sqrt(correction2) + eps).
/// Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
template <class T>
void adamw(int64_t n, const AdamW& step, T* param, const T* grad, T* exp_avg, T* exp_avg_sq);

}  // namespace dtensor::cpu
