#include <optional>

#include "ops/all.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using List = std::vector<DistributedTensor>;
using Unary = DistributedTensor(const DistributedTensor&);
using Binary = DistributedTensor(const DistributedTensor&, const DistributedTensor&);
using WithValue = DistributedTensor(const DistributedTensor&, double);
using Reducing = DistributedTensor(const DistributedTensor&, const std::vector<int64_t>&, bool);

template <Unary* f>
List unary(Arguments& a) {
  return {f(a.tensor(0))};
}
template <Binary* f>
List binary(Arguments& a) {
  return {f(a.tensor(0), a.tensor(1))};
}
template <Binary* f, WithValue* g>
List binary_or_value(Arguments& a) {
  return {a.has("value") ? g(a.tensor(0), a.number("value")) : f(a.tensor(0), a.tensor(1))};
}
template <Reducing* f>
List reduction(Arguments& a) {
  return {f(a.tensor(0), a.dims(), a.flag("keepdim"))};
}

Reduction reduction_of(Arguments& a, const char* who) {
  std::string r = a.text("reduction", "mean");
  check(r == "none" || r == "sum" || r == "mean", "[{}] reduction={}: it is none, sum or mean", who, r);
  return r == "none" ? Reduction::none : r == "sum" ? Reduction::sum : Reduction::mean;
}
RandomStream stream_of(Arguments& a, const char* purpose) {
  return {.seed = uint64_t(a.integer("seed", 0)), .purpose = purpose};
}

constexpr Function pointwise[] = {
    {"add", "add(x, y | value=)", binary_or_value<add, add>},
    {"sub", "sub(x, y | value=)", binary_or_value<sub, sub>},
    {"mul", "mul(x, y | value=)", binary_or_value<mul, mul>},
    {"div", "div(x, y | value=)", binary_or_value<div, div>},
    {"maximum", "maximum(x, y | value=)", binary_or_value<maximum, maximum>},
    {"minimum", "minimum(x, y | value=)", binary_or_value<minimum, minimum>},
    {"remainder", "remainder(x, y | value=)", binary_or_value<remainder, remainder>},
    {"fmod", "fmod(x, y | value=)", binary_or_value<fmod, fmod>},
    {"eq", "eq(x, y | value=)", binary_or_value<eq, eq>},
    {"ne", "ne(x, y | value=)", binary_or_value<ne, ne>},
    {"lt", "lt(x, y | value=)", binary_or_value<lt, lt>},
    {"le", "le(x, y | value=)", binary_or_value<le, le>},
    {"gt", "gt(x, y | value=)", binary_or_value<gt, gt>},
    {"ge", "ge(x, y | value=)", binary_or_value<ge, ge>},
    {"rsub", "rsub(x, value=)", [](Arguments& a) -> List { return {sub(a.number("value"), a.tensor(0))}; }},
    {"pow", "pow(x, y | exponent= | base=)",
     [](Arguments& a) -> List {
       if (a.has("base")) return {pow(a.number("base"), a.tensor(0))};
       return {a.has("exponent") ? pow(a.tensor(0), a.number("exponent")) : pow(a.tensor(0), a.tensor(1))};
     }},
    {"lerp", "lerp(start, end, weight | weight=)",
     [](Arguments& a) -> List {
       return {a.has("weight") ? lerp(a.tensor(0), a.tensor(1), a.number("weight"))
                               : lerp(a.tensor(0), a.tensor(1), a.tensor(2))};
     }},
    {"addcmul", "addcmul(x, tensor1, tensor2, value=1)",
     [](Arguments& a) -> List { return {addcmul(a.tensor(0), a.tensor(1), a.tensor(2), a.number("value", 1))}; }},
    {"logical_and", "logical_and(x, y)", binary<logical_and>},
    {"logical_or", "logical_or(x, y)", binary<logical_or>},
    {"logical_xor", "logical_xor(x, y)", binary<logical_xor>},
    {"where", "where(condition, x, y)",
     [](Arguments& a) -> List { return {where(a.tensor(0), a.tensor(1), a.tensor(2))}; }},
    {"masked_fill", "masked_fill(x, mask, value=)",
     [](Arguments& a) -> List { return {masked_fill(a.tensor(0), a.tensor(1), a.number("value"))}; }},
    {"neg", "neg(x)", unary<neg>},
    {"abs", "abs(x)", unary<abs>},
    {"sign", "sign(x)", unary<sign>},
    {"square", "square(x)", unary<square>},
    {"exp", "exp(x)", unary<exp>},
    {"expm1", "expm1(x)", unary<expm1>},
    {"log", "log(x)", unary<log>},
    {"log1p", "log1p(x)", unary<log1p>},
    {"sqrt", "sqrt(x)", unary<sqrt>},
    {"rsqrt", "rsqrt(x)", unary<rsqrt>},
    {"reciprocal", "reciprocal(x)", unary<reciprocal>},
    {"sin", "sin(x)", unary<sin>},
    {"cos", "cos(x)", unary<cos>},
    {"erf", "erf(x)", unary<erf>},
    {"floor", "floor(x)", unary<floor>},
    {"ceil", "ceil(x)", unary<ceil>},
    {"round", "round(x)", unary<round>},
    {"tanh", "tanh(x)", unary<tanh>},
    {"sigmoid", "sigmoid(x)", unary<sigmoid>},
    {"relu", "relu(x)", unary<relu>},
    {"silu", "silu(x)", unary<silu>},
    {"logical_not", "logical_not(x)", unary<logical_not>},
    {"isfinite", "isfinite(x)", unary<isfinite>},
    {"isnan", "isnan(x)", unary<isnan>},
    {"isinf", "isinf(x)", unary<isinf>},
    {"clamp", "clamp(x, min=none, max=none)",
     [](Arguments& a) -> List {
       std::optional<double> min, max;
       if (a.has("min")) min = a.number("min");
       if (a.has("max")) max = a.number("max");
       return {clamp(a.tensor(0), min, max)};
     }},
    {"gelu", "gelu(x, approximate=none)",
     [](Arguments& a) -> List { return {gelu(a.tensor(0), a.text("approximate", "none"))}; }},
    {"softplus", "softplus(x, beta=1, threshold=20)",
     [](Arguments& a) -> List { return {softplus(a.tensor(0), a.number("beta", 1), a.number("threshold", 20))}; }},
    {"swiglu", "swiglu(gate, up)", binary<swiglu>},
    {"cast", "cast(x, dtype=)", [](Arguments& a) -> List { return {cast(a.tensor(0), a.dtype("dtype", DType::f32))}; }},
};

constexpr Function reductions[] = {
    {"sum", "sum(x, dim=all, keepdim=false)", reduction<sum>},
    {"mean", "mean(x, dim=all, keepdim=false)", reduction<mean>},
    {"amax", "amax(x, dim=all, keepdim=false)", reduction<amax>},
    {"prod", "prod(x, dim=all, keepdim=false)", reduction<prod>},
    {"amin", "amin(x, dim=all, keepdim=false)", reduction<amin>},
    {"any", "any(x, dim=all, keepdim=false)", reduction<any>},
    {"all", "all(x, dim=all, keepdim=false)", reduction<all>},
    {"count_nonzero", "count_nonzero(x, dim=all)",
     [](Arguments& a) -> List { return {count_nonzero(a.tensor(0), a.dims())}; }},
    {"argmax", "argmax(x, dim=none, keepdim=false)",
     [](Arguments& a) -> List {
       std::optional<int64_t> dim;
       if (a.has("dim")) dim = a.integer("dim");
       return {argmax(a.tensor(0), dim, a.flag("keepdim"))};
     }},
    {"argmin", "argmin(x, dim=none, keepdim=false)",
     [](Arguments& a) -> List {
       std::optional<int64_t> dim;
       if (a.has("dim")) dim = a.integer("dim");
       return {argmin(a.tensor(0), dim, a.flag("keepdim"))};
     }},
    {"var", "var(x, dim=all, correction=1, keepdim=false)",
     [](Arguments& a) -> List {
       return {ops::var(a.tensor(0), a.dims(), a.number("correction", 1), a.flag("keepdim"))};
     }},
    {"std", "std(x, dim=all, correction=1, keepdim=false)",
     [](Arguments& a) -> List {
       return {ops::std(a.tensor(0), a.dims(), a.number("correction", 1), a.flag("keepdim"))};
     }},
    {"norm", "norm(x, p=2, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {norm(a.tensor(0), a.number("p", 2), a.dims(), a.flag("keepdim"))}; }},
    {"logsumexp", "logsumexp(x, dim=all, keepdim=false)", reduction<logsumexp>},
    {"cumsum", "cumsum(x, dim=)", [](Arguments& a) -> List { return {cumsum(a.tensor(0), a.integer("dim"))}; }},
    {"sort", "sort(x, dim=-1, descending=false, stable=true)",
     [](Arguments& a) -> List {
       auto [values, indices] = sort(a.tensor(0), a.integer("dim", -1), a.flag("descending"), a.flag("stable", true));
       return {values, indices};
     }},
    {"argsort", "argsort(x, dim=-1, descending=false, stable=true)",
     [](Arguments& a) -> List {
       return {argsort(a.tensor(0), a.integer("dim", -1), a.flag("descending"), a.flag("stable", true))};
     }},
    {"topk", "topk(x, k=, dim=-1, largest=true, sorted=true)",
     [](Arguments& a) -> List {
       auto [values, indices] =
           topk(a.tensor(0), a.integer("k"), a.integer("dim", -1), a.flag("largest", true), a.flag("sorted", true));
       return {values, indices};
     }},
    {"softmax", "softmax(x, dim=)", [](Arguments& a) -> List { return {softmax(a.tensor(0), a.integer("dim"))}; }},
    {"log_softmax", "log_softmax(x, dim=)",
     [](Arguments& a) -> List { return {log_softmax(a.tensor(0), a.integer("dim"))}; }},
};

constexpr Function shapes[] = {
    {"view", "view(x, shape=)", [](Arguments& a) -> List { return {view(a.tensor(0), a.shape("shape"))}; }},
    {"reshape", "reshape(x, shape=)", [](Arguments& a) -> List { return {reshape(a.tensor(0), a.shape("shape"))}; }},
    {"permute", "permute(x, dims=)", [](Arguments& a) -> List { return {permute(a.tensor(0), a.list("dims"))}; }},
    {"transpose", "transpose(x, dim0=, dim1=)",
     [](Arguments& a) -> List { return {transpose(a.tensor(0), a.integer("dim0"), a.integer("dim1"))}; }},
    {"expand", "expand(x, shape=)", [](Arguments& a) -> List { return {expand(a.tensor(0), a.shape("shape"))}; }},
    {"flatten", "flatten(x, start_dim=0, end_dim=-1)",
     [](Arguments& a) -> List { return {flatten(a.tensor(0), a.integer("start_dim", 0), a.integer("end_dim", -1))}; }},
    {"unflatten", "unflatten(x, dim=, sizes=)",
     [](Arguments& a) -> List { return {unflatten(a.tensor(0), a.integer("dim"), a.shape("sizes"))}; }},
    {"squeeze", "squeeze(x, dim=all)", [](Arguments& a) -> List { return {squeeze(a.tensor(0), a.dims())}; }},
    {"unsqueeze", "unsqueeze(x, dim=)",
     [](Arguments& a) -> List { return {unsqueeze(a.tensor(0), a.integer("dim"))}; }},
    {"slice", "slice(x, dim=0, start=none, end=none, step=1)",
     [](Arguments& a) -> List {
       auto bound = [&](const char* name) { return a.has(name) ? std::optional(a.integer(name)) : std::nullopt; };
       return {slice(a.tensor(0), a.integer("dim", 0), bound("start"), bound("end"), a.integer("step", 1))};
     }},
    {"narrow", "narrow(x, dim=, start=, length=)",
     [](Arguments& a) -> List {
       return {narrow(a.tensor(0), a.integer("dim"), a.integer("start"), a.integer("length"))};
     }},
    {"select", "select(x, dim=, index=)",
     [](Arguments& a) -> List { return {select(a.tensor(0), a.integer("dim"), a.integer("index"))}; }},
    {"cat", "cat(x..., dim=0)", [](Arguments& a) -> List { return {cat(a.tensors(), a.integer("dim", 0))}; }},
    {"stack", "stack(x..., dim=0)", [](Arguments& a) -> List { return {stack(a.tensors(), a.integer("dim", 0))}; }},
    {"split", "split(x, split_size= | split_sizes=, dim=0)",
     [](Arguments& a) -> List {
       return a.has("split_sizes") ? split(a.tensor(0), a.list("split_sizes"), a.integer("dim", 0))
                                   : split(a.tensor(0), a.integer("split_size"), a.integer("dim", 0));
     }},
    {"chunk", "chunk(x, chunks=, dim=0)",
     [](Arguments& a) -> List { return chunk(a.tensor(0), a.integer("chunks"), a.integer("dim", 0)); }},
    {"repeat", "repeat(x, repeats=)", [](Arguments& a) -> List { return {repeat(a.tensor(0), a.list("repeats"))}; }},
    {"flip", "flip(x, dims=)", [](Arguments& a) -> List { return {flip(a.tensor(0), a.list("dims"))}; }},
    {"roll", "roll(x, shifts=, dims=flattened)",
     [](Arguments& a) -> List { return {roll(a.tensor(0), a.list("shifts"), a.dims())}; }},
    {"tril", "tril(x, diagonal=0)", [](Arguments& a) -> List { return {tril(a.tensor(0), a.integer("diagonal", 0))}; }},
    {"triu", "triu(x, diagonal=0)", [](Arguments& a) -> List { return {triu(a.tensor(0), a.integer("diagonal", 0))}; }},
    {"index_select", "index_select(x, index, dim=)",
     [](Arguments& a) -> List { return {index_select(a.tensor(0), a.integer("dim"), a.tensor(1))}; }},
    {"index_add", "index_add(x, index, source, dim=)",
     [](Arguments& a) -> List { return {index_add(a.tensor(0), a.integer("dim"), a.tensor(1), a.tensor(2))}; }},
    {"index_copy_", "index_copy_(x, index, source, dim=)",
     [](Arguments& a) -> List { return {index_copy_(a.tensor(0), a.integer("dim"), a.tensor(1), a.tensor(2))}; }},
    {"gather", "gather(x, index, dim=)",
     [](Arguments& a) -> List { return {gather(a.tensor(0), a.integer("dim"), a.tensor(1))}; }},
    {"scatter_add", "scatter_add(x, index, source, dim=)",
     [](Arguments& a) -> List { return {scatter_add(a.tensor(0), a.integer("dim"), a.tensor(1), a.tensor(2))}; }},
    {"one_hot", "one_hot(x, num_classes=)",
     [](Arguments& a) -> List { return {one_hot(a.tensor(0), a.integer("num_classes"))}; }},
};

constexpr Function layers[] = {
    {"matmul", "matmul(x, y)", binary<matmul>},
    {"bmm", "bmm(x, y)", binary<bmm>},
    {"einsum", "einsum(operands... | equation=)",
     [](Arguments& a) -> List {
       List operands = a.tensors();
       std::vector<const DistributedTensor*> list;
       for (const DistributedTensor& x : operands) list.push_back(&x);
       return {einsum(a.text("equation"), list)};
     }},
    {"linear", "linear(x, weight, bias=none)",
     [](Arguments& a) -> List { return {linear(a.tensor(0), a.tensor(1), a.optional_tensor(2))}; }},
    {"linear_gelu", "linear_gelu(x, weight, bias=none)",
     [](Arguments& a) -> List { return {linear_gelu(a.tensor(0), a.tensor(1), a.optional_tensor(2))}; }},
    {"rms_norm", "rms_norm(x, weight, eps=1e-6)",
     [](Arguments& a) -> List { return {rms_norm(a.tensor(0), a.tensor(1), a.number("eps", 1e-6))}; }},
    {"layer_norm", "layer_norm(x, weight=none, bias=none, normalized_shape=, eps=1e-5)",
     [](Arguments& a) -> List {
       return {layer_norm(a.tensor(0), a.shape("normalized_shape"), a.optional_tensor(1), a.optional_tensor(2),
                          a.number("eps", 1e-5))};
     }},
    {"embedding", "embedding(ids, weight)", binary<embedding>},
    {"rotary", "rotary(x, positions=none, theta=10000)",
     [](Arguments& a) -> List { return {rotary(a.tensor(0), a.number("theta", 10000), a.optional_tensor(1))}; }},
    {"scaled_dot_product_attention",
     "scaled_dot_product_attention(q, k, v, attn_mask=none, q_positions=none, k_positions=none, k_lengths=none, "
     "dropout_p=0, is_causal=false, scale=1/sqrt(d), seed=0)",
     [](Arguments& a) -> List {
       return {scaled_dot_product_attention(a.tensor(0), a.tensor(1), a.tensor(2),
                                            {.causal = a.flag("is_causal"),
                                             .scale = a.number("scale", 0),
                                             .attn_mask = a.optional_tensor(3),
                                             .q_positions = a.optional_tensor(4),
                                             .k_positions = a.optional_tensor(5),
                                             .k_lengths = a.optional_tensor(6),
                                             .dropout_p = a.number("dropout_p", 0),
                                             .stream = stream_of(a, "dropout")})};
     }},
    {"dropout", "dropout(x, p=0.5, training=true, seed=0)",
     [](Arguments& a) -> List {
       return {dropout(a.tensor(0), a.number("p", 0.5), stream_of(a, "dropout"), a.flag("training", true))};
     }},
    {"cross_entropy",
     "cross_entropy(logits, target, ignore_index=-100, reduction=mean, label_smoothing=0, class_dim=-1)",
     [](Arguments& a) -> List {
       return {cross_entropy(a.tensor(0), a.tensor(1),
                             {.ignore_index = a.integer("ignore_index", -100),
                              .reduction = reduction_of(a, "cross_entropy"),
                              .label_smoothing = a.number("label_smoothing", 0),
                              .class_dim = a.integer("class_dim", -1)})};
     }},
    {"linear_cross_entropy",
     "linear_cross_entropy(hidden, weight, target, ignore_index=-100, reduction=mean, label_smoothing=0, "
     "chunk_rows=4096)",
     [](Arguments& a) -> List {
       return {linear_cross_entropy(a.tensor(0), a.tensor(1), a.tensor(2),
                                    {.ignore_index = a.integer("ignore_index", -100),
                                     .reduction = reduction_of(a, "linear_cross_entropy"),
                                     .label_smoothing = a.number("label_smoothing", 0),
                                     .chunk_rows = a.integer("chunk_rows", 4096)})};
     }},
    {"mse_loss", "mse_loss(input, target, reduction=mean)",
     [](Arguments& a) -> List { return {mse_loss(a.tensor(0), a.tensor(1), reduction_of(a, "mse_loss"))}; }},
};

}  // namespace

std::span<const Function> functions() {
  static const std::vector<Function> all = [] {
    std::vector<Function> list;
    for (std::span<const Function> family :
         {std::span<const Function>(pointwise), std::span<const Function>(reductions),
          std::span<const Function>(shapes), std::span<const Function>(layers)})
      list.insert(list.end(), family.begin(), family.end());
    return list;
  }();
  return all;
}

}  // namespace dtensor::ops
