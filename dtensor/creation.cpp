#include "dtensor/creation.h"

#include "dtensor/local/runs.h"
#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

// The new tensor x gets its value by write(T* part), on the ranks that hold it.
template <class F>
DistributedTensor with_values(DistributedTensor x, const F& write) {
  if (x.is_meta()) return x;
  if (!keeps_value(x.mesh().shape(), x.mesh().rank(), x.layout().partial, x.layout().reduce)) {
    fill_identity(x.local(), x.layout().reduce);
    return x;
  }
  write_on_host(x.local(), [&](const Tensor& part) {
    switch (part.dtype()) {
      case DType::f32:
        return write(part.data<float>());
      case DType::f64:
        return write(part.data<double>());
      case DType::bf16:
        return write(part.data<BFloat16>());
      case DType::i64:
        return write(part.data<int64_t>());
      default:
        return write(part.data<bool>());
    }
  });
  return x;
}

DistributedTensor filled(const char* who, const DistributedTensor& x, Number value) {
  if (x.dtype() == DType::i64) value.as<int64_t>(who);  // on every rank and on meta: an error is the same everywhere
  return with_values(x, [&]<class T>(T* part) { std::fill_n(part, x.local().numel(), value.as<T>(who)); });
}

// How many values there are from start to end.
int64_t count(Number start, Number end, Number step, DType dtype) {
  if (dtype == DType::i64) {
    int64_t from = start.as<int64_t>("arange"), to = end.as<int64_t>("arange"), by = step.as<int64_t>("arange");
    check(by != 0, "[arange] the step is 0");
    if (by < 0) std::swap(from, to);
    uint64_t way = uint64_t(to) - uint64_t(from), stride = by < 0 ? 0 - uint64_t(by) : uint64_t(by);
    return from < to ? int64_t((way - 1) / stride + 1) : 0;
  }
  double from = start.as<double>("arange"), to = end.as<double>("arange"), by = step.as<double>("arange");
  check(by != 0, "[arange] the step is 0");
  double n = std::ceil((to - from) / by);
  check(n < 0x1p62, "[arange] from {} to {} by {} are not finitely many values", from, to, by);
  return n > 0 ? int64_t(n) : 0;
}

DistributedTensor arange_of(const DistributedTensor& x, Number start, Number step) {
  if (x.dtype() == DType::boolean) fail("[arange] {} cannot count: use i64, f32 or f64", to_string(x));
  Range mine = x.spec().box[0];
  return with_values(x, [&]<class T>(T* part) {
    for (int64_t i = mine.begin; i < mine.end; ++i)
      if constexpr (std::same_as<T, int64_t>)  // unsigned: i * step may be more than an i64 where the sum is not
        *part++ = T(uint64_t(start.as<T>("arange")) + uint64_t(i) * uint64_t(step.as<T>("arange")));
      else
        *part++ = T(start.as<double>("arange") + double(i) * step.as<double>("arange"));
  });
}

DistributedTensor like(std::string_view who, const DistributedTensor& x) {
  check_defined(who, x);
  Rank& rank = x.mesh().rank_state();
  return DistributedTensor::empty(x.mesh(), &x.spec(),
                                  Tensor(x.is_on_host() ? rank.host_allocator() : rank.allocator(), x.dtype(),
                                         x.spec().local_shape, x.local().device()));
}

}  // namespace

DistributedTensor empty(const DeviceMesh& mesh, const SpecOrText& spec) {
  return DistributedTensor::empty(mesh, spec.on(mesh));
}
DistributedTensor zeros(const DeviceMesh& mesh, const SpecOrText& spec) {
  return filled("zeros", empty(mesh, spec), 0);
}
DistributedTensor ones(const DeviceMesh& mesh, const SpecOrText& spec) { return filled("ones", empty(mesh, spec), 1); }
DistributedTensor full(const DeviceMesh& mesh, const SpecOrText& spec, Number value) {
  return filled("full", empty(mesh, spec), value);
}

DistributedTensor arange(const DeviceMesh& mesh, const SpecOrText& spec, Number start, Number end, Number step) {
  DistributedTensor x = empty(mesh, spec);
  int64_t n = count(start, end, step, x.dtype());
  if (x.shape() != Shape{n})
    fail("[arange] from {} to {} by {} are {} values, which {} cannot hold: its shape must be [{}]",
         start.as<double>("arange"), end.as<double>("arange"), step.as<double>("arange"), n, to_string(x), n);
  return arange_of(x, start, step);
}
DistributedTensor arange(const DeviceMesh& mesh, const SpecOrText& spec) {
  DistributedTensor x = empty(mesh, spec);
  if (x.dims() != 1) fail("[arange] {} has {} dimensions, not 1", to_string(x), x.dims());
  return arange_of(x, 0, 1);
}

DistributedTensor eye(const DeviceMesh& mesh, const SpecOrText& spec) {
  DistributedTensor x = empty(mesh, spec);
  if (x.dims() != 2) fail("[eye] {} has {} dimensions, not 2", to_string(x), x.dims());
  const Box& box = x.spec().box;
  return with_values(x, [&]<class T>(T* part) {
    std::fill_n(part, box.numel(), T(0));
    int64_t begin = std::max(box[0].begin, box[1].begin), end = std::min(box[0].end, box[1].end);
    for (int64_t i = begin; i < end; ++i) part[(i - box[0].begin) * box[1].size() + i - box[1].begin] = T(1);
  });
}

DistributedTensor uniform(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double low,
                          double high) {
  DistributedTensor x = empty(mesh, spec);
  fill_uniform(x, stream, low, high);
  return x;
}
DistributedTensor normal(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double mean,
                         double std) {
  DistributedTensor x = empty(mesh, spec);
  fill_normal(x, stream, mean, std);
  return x;
}
DistributedTensor bernoulli(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream, double p) {
  DistributedTensor x = empty(mesh, spec);
  fill_bernoulli(x, stream, p);
  return x;
}
DistributedTensor rand(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream) {
  return uniform(mesh, spec, stream, 0, 1);
}
DistributedTensor randn(const DeviceMesh& mesh, const SpecOrText& spec, const RandomStream& stream) {
  return normal(mesh, spec, stream, 0, 1);
}

DistributedTensor empty_like(const DistributedTensor& x) { return like("empty_like", x); }
DistributedTensor zeros_like(const DistributedTensor& x) { return filled("zeros_like", like("zeros_like", x), 0); }
DistributedTensor ones_like(const DistributedTensor& x) { return filled("ones_like", like("ones_like", x), 1); }
DistributedTensor full_like(const DistributedTensor& x, Number value) {
  return filled("full_like", like("full_like", x), value);
}
DistributedTensor rand_like(const DistributedTensor& x, const RandomStream& stream) {
  DistributedTensor y = like("rand_like", x);
  fill_uniform(y, stream, 0, 1);
  return y;
}
DistributedTensor randn_like(const DistributedTensor& x, const RandomStream& stream) {
  DistributedTensor y = like("randn_like", x);
  fill_normal(y, stream, 0, 1);
  return y;
}

}  // namespace dtensor
