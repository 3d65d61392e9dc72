#include "dtensor/random.h"

#include <cmath>

#include "dtensor/cuda/part.h"
#include "dtensor/distributions.h"
#include "dtensor/local/runs.h"
#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325u;
  for (char c : text) h = (h ^ uint8_t(c)) * 0x100000001b3u;
  return h;
}

constexpr int lanes = 8;  // generators at once: the compiler turns loops over them into vector instructions

// Four words each of the counters from `counter` on, in their order.
void philox(uint64_t key, uint64_t counter, uint32_t* words) {
  uint32_t w[4][lanes];
  for (int i = 0; i < lanes; ++i) {
    uint64_t c = counter + uint64_t(i);
    w[0][i] = uint32_t(c), w[1][i] = uint32_t(c >> 32), w[2][i] = w[3][i] = 0;
  }
  philox_rounds(key, [&](uint32_t k0, uint32_t k1) {
    for (int i = 0; i < lanes; ++i) philox_round(w[0][i], w[1][i], w[2][i], w[3][i], k0, k1);
  });
  for (int i = 0; i < lanes; ++i)
    for (int k = 0; k < 4; ++k) words[4 * i + k] = w[k][i];
}

// out[i] = f(the word of the i-th element of the box).
template <class T, class F>
void from_words(uint64_t key, const Shape& shape, const Box& box, T* out, const F& f) {
  constexpr int64_t block = 4 * lanes;
  for_each_run(shape, box, [&](int64_t local, int64_t global, int64_t n) {
    uint32_t words[block];
    for (int64_t done = 0; done < n;) {
      int64_t at = (global + done) % 4, count = std::min(n - done, block - at);
      if (count <= 4 - at) {  // short runs need one counter
        Philox one(key, uint64_t(global + done) / 4);
        std::copy_n(one.word, 4, words);
      } else {
        philox(key, uint64_t(global + done) / 4, words);
      }
      for (int64_t i = 0; i < count; ++i) out[local + done + i] = f(words[at + i]);
      done += count;
    }
  });
}

// on_host(T* part), or on_device(fill), on the ranks that keep a value.
template <class... Types, class OnHost, class OnDevice>
void fill_with(const char* who, DistributedTensor& x, const RandomStream& stream, const OnHost& on_host,
               const OnDevice& on_device) {
  bool known = (... || (x.dtype() == dtype_of<Types>::value)) || (x.dtype() == DType::bf16 && x.is_meta());
  if (!known) fail("[{}] {} gets no such numbers: use f32 or f64", who, to_string(x));
  if (x.is_meta()) return;
  const Tensor& part = x.local_for_writing();
  if (!keeps_value(x.mesh().shape(), x.mesh().rank(), x.layout().partial, x.layout().reduce))
    return fill_identity(part, x.layout().reduce);
  if (part.device() == Device::cuda)
    return on_device({part.allocator()->stream(), stream.key(), cuda::part_of(x.shape(), x.spec().box), part.dtype(),
                      part.bytes_data()});
  auto fill_one = [&]<class T>(T*) {
    if (part.dtype() == dtype_of<T>::value) on_host(part.data<T>());
  };
  (fill_one(static_cast<Types*>(nullptr)), ...);
}

}  // namespace

uint64_t RandomStream::key_at_step_0() const {
  uint64_t key = mixed(seed, 0);
  // The zeros are of no use but that initial values stay what they always were.
  for (uint64_t part : {hash(purpose), hash(path), uint64_t(0), uint64_t(0), uint64_t(call)}) key = mixed(key, part);
  return key;
}

void fill_unit(uint64_t key, const Shape& shape, const Box& box, float* out) {
  from_words(key, shape, box, out, unit_of);
}

void fill_normal(DistributedTensor& x, const RandomStream& stream, double mean, double std) {
  check(std >= 0, "[fill_normal] a standard deviation of {}", std);
  auto on_host = [&]<class T>(T* part) {
    for_each_run(x.shape(), x.spec().box, [&, key = stream.key()](int64_t local, int64_t global, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        Philox p(key, uint64_t(global + i));
        part[local + i] = Normal<T>{mean, std}(p.word[0], p.word[1]);
      }
    });
  };
  fill_with<float, double>("fill_normal", x, stream, on_host,
                           [&](const cuda::RandomFill& to) { cuda::fill_normal(to, mean, std); });
}

void fill_uniform(DistributedTensor& x, const RandomStream& stream, double low, double high) {
  check(low <= high && std::isfinite(high - low), "[fill_uniform] the numbers cannot be in [{}, {})", low, high);
  auto on_host = [&]<class T>(T* part) {
    from_words(stream.key(), x.shape(), x.spec().box, part, Uniform<T>{low, high, std::nextafter(T(high), T(low))});
  };
  fill_with<float, double>("fill_uniform", x, stream, on_host,
                           [&](const cuda::RandomFill& to) { cuda::fill_uniform(to, low, high); });
}

void fill_bernoulli(DistributedTensor& x, const RandomStream& stream, double p) {
  check(p >= 0 && p <= 1, "[fill_bernoulli] a probability of {}", p);
  auto on_host = [&]<class T>(T* part) { from_words(stream.key(), x.shape(), x.spec().box, part, Bernoulli<T>{p}); };
  fill_with<float, double, int64_t, bool>("fill_bernoulli", x, stream, on_host,
                                          [&](const cuda::RandomFill& to) { cuda::fill_bernoulli(to, p); });
}

}  // namespace dtensor
