#include "ops/reduction/scan.h"

#include <functional>

#include "ops/cards.h"
#include "ops/family/dims.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

Rule cumsum_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims(), dims_of(a));
  return {all + "->" + all};
}

void cumsum_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Dims& dims = dims_of(c.attributes);
  Slices s = slices_of(in[0], dims);
  bool reverse = c.attributes.as<Scan>().reverse;
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
  Scan back = g.attributes().as<Scan>();
  back.reverse = !back.reverse;
  g.set(0, call(cumsum_op, {&g.of_output()}, back));
}

}  // namespace

const Op cumsum_op = {.name = "cumsum",
                      .functions = {function<cumsum>("cumsum(x, dim=)", "the sums of the elements up to each")},
                      .rule = cumsum_rule,
                      .passes = {linear_in({0})},
                      .strided = true,
                      .cpu = cumsum_kernel,
                      .gradient = cumsum_gradient,
                      .sample = {{{{4, 5, 3}}, Scan{{{1}}, false}},
                                 {{{4, 5}}, Scan{{{1}}, true}},
                                 {{{5, 3}}, Scan{{{0}}, false}},
                                 {{{3, 0}}, Scan{{{1}}, false}},
                                 {{{}}, Scan{{{}}, false}},
                                 {{{SampleInput::Kind::index, {4, 5}, 9}}, Scan{{{1}}, false}}}};

namespace {
constexpr const Op* scan_ops[] = {&cumsum_op};
}  // namespace
const Cards scan_cards = scan_ops;

DistributedTensor cumsum(const DistributedTensor& x, int64_t dim) {
  check_defined("cumsum", x);
  Dims dims = normalized_dims("cumsum", {dim}, x.dims());
  DistributedTensor numbers = x.dtype() == DType::boolean ? cast(x, DType::i64) : x;
  return call(cumsum_op, {&numbers}, Scan{{dims}, false});
}

}  // namespace dtensor::ops
