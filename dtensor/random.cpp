#include "dtensor/random.h"

#include <cmath>
#include <numbers>

namespace dtensor {
namespace {

uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325u;
  for (char c : text) h = (h ^ uint8_t(c)) * 0x100000001b3u;
  return h;
}

// Calls f(local index, global index) for each element of this rank's part.
template <class F>
void each_element(const DistributedTensor& x, F f) {
  const Box& box = x.spec().box;
  int64_t n = box.numel();
  Shape at = box.offset(), strides = contiguous_strides(x.shape());
  int64_t global = 0;
  for (int d = 0; d < box.dims; ++d) global += at[d] * strides[d];
  for (int64_t i = 0; i < n; ++i) {
    f(i, global);
    for (int d = box.dims - 1; d >= 0; --d) {
      global += strides[d];
      if (++at[d] < box[d].end) break;
      global -= box[d].size() * strides[d];
      at[d] = box[d].begin;
    }
  }
}

// (0, 1]: 32 bits, never 0.
double unit(uint32_t word) { return (double(word) + 1) * 0x1p-32; }

template <class T, class F>
void fill_with(DistributedTensor& x, uint64_t key, F number) {
  T* data = x.local_for_writing().data<T>();
  each_element(x, [&](int64_t i, int64_t global) { data[i] = T(number(Philox(key, uint64_t(global)))); });
}

template <class F>
void fill_with(const char* who, DistributedTensor& x, const RandomStream& stream, F number) {
  check(!x.layout().partial, "[{}] {} is Partial: random numbers need a Shard or Replicate layout", who, to_string(x));
  if (x.is_meta()) return;
  if (x.dtype() == DType::f32)
    fill_with<float>(x, stream.key(), number);
  else if (x.dtype() == DType::f64)
    fill_with<double>(x, stream.key(), number);
  else
    fail("[{}] {} is not a floating type that the CPU has", who, name(x.dtype()));
}

}  // namespace

uint64_t RandomStream::key() const {
  uint64_t h = mix(seed + 0x9e3779b97f4a7c15u);
  for (uint64_t part : {hash(purpose), hash(path), uint64_t(step), uint64_t(micro_batch), uint64_t(call)})
    h = mix((h ^ part) + 0x9e3779b97f4a7c15u);
  return h;
}

Philox::Philox(uint64_t key, uint64_t counter) : word{uint32_t(counter), uint32_t(counter >> 32), 0, 0} {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
    uint64_t a = uint64_t(0xd2511f53u) * word[0], b = uint64_t(0xcd9e8d57u) * word[2];
    uint32_t w[4] = {uint32_t(b >> 32) ^ word[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ word[3] ^ k1, uint32_t(a)};
    for (int i = 0; i < 4; ++i) word[i] = w[i];
  }
}

void fill_normal(DistributedTensor& x, const RandomStream& stream, double mean, double std) {
  fill_with("fill_normal", x, stream, [=](const Philox& p) {  // Box and Muller
    return mean + std * std::sqrt(-2 * std::log(unit(p.word[0]))) * std::cos(2 * std::numbers::pi * unit(p.word[1]));
  });
}

void fill_uniform(DistributedTensor& x, const RandomStream& stream, double low, double high) {
  fill_with("fill_uniform", x, stream,
            [=](const Philox& p) { return low + (high - low) * (double(p.word[0]) * 0x1p-32); });
}

}  // namespace dtensor
