#include "ops/cuda/dropout.h"

#include "dtensor/cuda/random.cuh"

namespace dtensor::cuda {
namespace {

template <class T>
struct Dropped {
  double p;
  Accumulate<T> kept;
  __device__ T operator()(uint32_t word, T x) const {
    return rounded<T>(load(x) * (unit_of(word) < p ? Accumulate<T>(0) : kept));
  }
};

struct IndexedRuns {
  IndexedPart part;
  int64_t of_position;  // runs
  __host__ __device__ int64_t count() const { return part.rows * part.positions * of_position; }
  __host__ __device__ int64_t size() const { return part.rest.run; }
  __device__ int64_t first(int64_t run) const {
    const int64_t outer = quotient(run, of_position), r = quotient(outer, part.positions),
                  p = outer - r * part.positions;
    return (part.row ? part.row[r] : part.first_row + r) * part.per_row +
           (part.position ? part.position[p] : part.first_position + p) * part.per_position +
           first_of_run(part.rest, run - outer * of_position);
  }
};

template <class Runs>
bool dropped(const Dropping& d, DType type, const Runs& runs, const void* x, void* out) {
  return for_floating(type, [&](auto t) {
    using T = decltype(t);
    launch_words<T>(d.stream, {d.key, d.step}, runs, static_cast<const T*>(x), static_cast<T*>(out),
                    Dropped<T>{d.p, Accumulate<T>(1 / (1 - d.p))});
  });
}

}  // namespace

bool dropout(const Dropping& d, DType type, const Part& part, const void* x, void* out) {
  return part.n == 0 || dropped(d, type, PartRuns{part}, x, out);
}
bool dropout(const Dropping& d, DType type, const IndexedPart& part, const void* x, void* out) {
  return part.rest.n == 0 || dropped(d, type, IndexedRuns{part, part.rest.n / part.rest.run}, x, out);
}

}  // namespace dtensor::cuda
