#include "ops/scan.h"

#include <functional>

#include "ops/dims.h"
#include "ops/elementwise.h"
#include "ops/pointwise.h"

namespace dtensor::ops {
namespace {

Rule cumsum_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims(), dims_of(a));
  return {all + "->" + all};
}

void cumsum_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Dims& dims = dims_of(c.attributes);
  Slices s = slices_of(in[0], dims);
  bool reverse = c.attributes.get<bool>("reverse", false);
  for_numbers(c, in[0].dtype(), [&]<class T>() {
    using Sum = std::conditional_t<std::is_floating_point_v<T>, double, T>;
    write_slices(c, out[0], dims, [&](Tensor& to) {
      each_slice(c, s, [&](int64_t i, int) {
        const T* x = s.x.data<T>() + i * s.n;
        T* y = to.data<T>() + i * s.n;
        Sum sum = 0;
        for (int64_t k = 0; k < s.n; ++k) {
          int64_t at = reverse ? s.n - 1 - k : k;
          sum = wrapping(std::plus<>{}, sum, Sum(x[at]));
          y[at] = T(sum);
        }
      });
    });
  });
}
void cumsum_gradient(Gradient& g) {
  Attributes back = g.attributes();
  back.set("reverse", !back.get<bool>("reverse", false));
  g.set(0, call(cumsum_op, {&g.of_output()}, back));
}

}  // namespace

const Op cumsum_op = {.name = "cumsum",
                      .rule = cumsum_rule,
                      .passes = {linear_in({0})},
                      .strided = true,
                      .cpu = cumsum_kernel,
                      .gradient = cumsum_gradient,
                      .sample = {{{{4, 5, 3}}, {{"dims", Dims{1}}}},
                                 {{{4, 5}}, {{"dims", Dims{1}}, {"reverse", true}}},
                                 {{{5, 3}}, {{"dims", Dims{0}}}},
                                 {{{3, 0}}, {{"dims", Dims{1}}}},
                                 {{{}}, {{"dims", Dims{}}}},
                                 {{{SampleInput::Kind::index, {4, 5}, 9}}, {{"dims", Dims{1}}}}}};

DistributedTensor cumsum(const DistributedTensor& x, int64_t dim) {
  check_defined("cumsum", x);
  Dims dims = normalized_dims("cumsum", {dim}, x.dims());
  DistributedTensor numbers = x.dtype() == DType::boolean ? cast(x, DType::i64) : x;
  return call(cumsum_op, {&numbers}, {{"dims", dims}});
}

}  // namespace dtensor::ops
