#include "ops/functions.h"

#include "ops/all.h"
#include "placement/nearest.h"

namespace dtensor::ops {

const DistributedTensor& Arguments::tensor(size_t i) {
  check(i < inputs_.size() && inputs_[i], "[{}] tensor {} is missing; {} are given", function_, i, inputs_.size());
  inputs_used_ = std::max(inputs_used_, i + 1);
  return *inputs_[i];
}

DistributedTensor Arguments::optional_tensor(size_t i) {
  inputs_used_ = std::max(inputs_used_, i + 1);
  return i < inputs_.size() && inputs_[i] ? *inputs_[i] : DistributedTensor();
}

std::vector<DistributedTensor> Arguments::tensors(size_t from) {
  std::vector<DistributedTensor> list;
  for (size_t i = from; i < inputs_.size(); ++i) list.push_back(tensor(i));
  return list;
}

const AttributeValue* Arguments::use(std::string_view name, bool needed) {
  used_.emplace_back(name);
  for (const auto& [n, v] : attributes_.list())
    if (n == name) return &v;
  check(!needed, "[{}] \"{}\" is missing", function_, name);
  return nullptr;
}

int64_t Arguments::integer(std::string_view name, std::optional<int64_t> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  const auto* i = std::get_if<int64_t>(v);
  check(i, "[{}] \"{}={}\" is no integer", function_, name, dtensor::to_string(*v));
  return *i;
}

double Arguments::number(std::string_view name, std::optional<double> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return double(*i);
  const auto* d = std::get_if<double>(v);
  check(d, "[{}] \"{}={}\" is no number", function_, name, dtensor::to_string(*v));
  return *d;
}

bool Arguments::flag(std::string_view name, bool otherwise) {
  const AttributeValue* v = use(name, false);
  if (!v) return otherwise;
  const auto* b = std::get_if<bool>(v);
  check(b, "[{}] \"{}={}\" is neither true nor false", function_, name, dtensor::to_string(*v));
  return *b;
}

std::string Arguments::text(std::string_view name, std::optional<std::string> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  return v ? dtensor::to_string(*v) : *otherwise;
}

DType Arguments::dtype(std::string_view name, DType otherwise) {
  const AttributeValue* v = use(name, false);
  if (!v) return otherwise;
  const auto* t = std::get_if<DType>(v);
  check(t, "[{}] \"{}={}\" is no element type", function_, name, dtensor::to_string(*v));
  return *t;
}

std::vector<int64_t> Arguments::list(std::string_view name, std::optional<std::vector<int64_t>> otherwise) {
  const AttributeValue* v = use(name, !otherwise);
  if (!v) return *otherwise;
  if (const auto* i = std::get_if<int64_t>(v)) return {*i};
  const auto* l = std::get_if<std::vector<int64_t>>(v);
  check(l, "[{}] \"{}={}\" is no list of integers", function_, name, dtensor::to_string(*v));
  return *l;
}

Shape Arguments::shape(std::string_view name) {
  std::vector<int64_t> l = list(name);
  check(l.size() <= size_t(max_dims), "[{}] {} dimensions; at most {} are supported", function_, l.size(), max_dims);
  return Shape(l.begin(), l.end());
}

std::vector<int64_t> Arguments::dims() { return list("dim", list("dims", std::vector<int64_t>())); }

void Arguments::check_all_used() const {
  check(inputs_used_ >= inputs_.size(), "[{}] takes {} tensors, not {}", function_, inputs_used_, inputs_.size());
  for (const auto& [n, v] : attributes_.list())
    check(std::find(used_.begin(), used_.end(), n) != used_.end(), "[{}] takes no \"{}\"; it takes {}", function_, n,
          used_.empty() ? "none" : fmt::format("{}", fmt::join(used_, ", ")));
}

namespace {

using List = std::vector<DistributedTensor>;

constexpr Function
    list[] =
        {
            // Pointwise.
            {"add", "add(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? add(a.tensor(0), a.number("value")) : add(a.tensor(0), a.tensor(1))};
             }},
            {"sub", "sub(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? sub(a.tensor(0), a.number("value")) : sub(a.tensor(0), a.tensor(1))};
             }},
            {"mul", "mul(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? mul(a.tensor(0), a.number("value")) : mul(a.tensor(0), a.tensor(1))};
             }},
            {"div", "div(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? div(a.tensor(0), a.number("value")) : div(a.tensor(0), a.tensor(1))};
             }},
            {"maximum", "maximum(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? maximum(a.tensor(0), a.number("value")) : maximum(a.tensor(0), a.tensor(1))};
             }},
            {"minimum", "minimum(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? minimum(a.tensor(0), a.number("value")) : minimum(a.tensor(0), a.tensor(1))};
             }},
            {"remainder", "remainder(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? remainder(a.tensor(0), a.number("value"))
                                      : remainder(a.tensor(0), a.tensor(1))};
             }},
            {"fmod", "fmod(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? fmod(a.tensor(0), a.number("value")) : fmod(a.tensor(0), a.tensor(1))};
             }},
            {"eq", "eq(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? eq(a.tensor(0), a.number("value")) : eq(a.tensor(0), a.tensor(1))};
             }},
            {"ne", "ne(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? ne(a.tensor(0), a.number("value")) : ne(a.tensor(0), a.tensor(1))};
             }},
            {"lt", "lt(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? lt(a.tensor(0), a.number("value")) : lt(a.tensor(0), a.tensor(1))};
             }},
            {"le", "le(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? le(a.tensor(0), a.number("value")) : le(a.tensor(0), a.tensor(1))};
             }},
            {"gt", "gt(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? gt(a.tensor(0), a.number("value")) : gt(a.tensor(0), a.tensor(1))};
             }},
            {"ge", "ge(x, y | value=)",
             [](Arguments& a) -> List {
               return {a.has("value") ? ge(a.tensor(0), a.number("value")) : ge(a.tensor(0), a.tensor(1))};
             }},
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
             [](Arguments& a) -> List {
               return {addcmul(a.tensor(0), a.tensor(1), a.tensor(2), a.number("value", 1))};
             }},
            {"logical_and", "logical_and(x, y)",
             [](Arguments& a) -> List { return {logical_and(a.tensor(0), a.tensor(1))}; }},
            {"logical_or", "logical_or(x, y)",
             [](Arguments& a) -> List { return {logical_or(a.tensor(0), a.tensor(1))}; }},
            {"logical_xor", "logical_xor(x, y)",
             [](Arguments& a) -> List { return {logical_xor(a.tensor(0), a.tensor(1))}; }},
            {"where", "where(condition, x, y)",
             [](Arguments& a) -> List { return {where(a.tensor(0), a.tensor(1), a.tensor(2))}; }},
            {"masked_fill", "masked_fill(x, mask, value=)",
             [](Arguments& a) -> List { return {masked_fill(a.tensor(0), a.tensor(1), a.number("value"))}; }},
            {"neg", "neg(x)", [](Arguments& a) -> List { return {neg(a.tensor(0))}; }},
            {"abs", "abs(x)", [](Arguments& a) -> List { return {abs(a.tensor(0))}; }},
            {"sign", "sign(x)", [](Arguments& a) -> List { return {sign(a.tensor(0))}; }},
            {"square", "square(x)", [](Arguments& a) -> List { return {square(a.tensor(0))}; }},
            {"exp", "exp(x)", [](Arguments& a) -> List { return {exp(a.tensor(0))}; }},
            {"expm1", "expm1(x)", [](Arguments& a) -> List { return {expm1(a.tensor(0))}; }},
            {"log", "log(x)", [](Arguments& a) -> List { return {log(a.tensor(0))}; }},
            {"log1p", "log1p(x)", [](Arguments& a) -> List { return {log1p(a.tensor(0))}; }},
            {"sqrt", "sqrt(x)", [](Arguments& a) -> List { return {sqrt(a.tensor(0))}; }},
            {"rsqrt", "rsqrt(x)", [](Arguments& a) -> List { return {rsqrt(a.tensor(0))}; }},
            {"reciprocal", "reciprocal(x)", [](Arguments& a) -> List { return {reciprocal(a.tensor(0))}; }},
            {"sin", "sin(x)", [](Arguments& a) -> List { return {sin(a.tensor(0))}; }},
            {"cos", "cos(x)", [](Arguments& a) -> List { return {cos(a.tensor(0))}; }},
            {"erf", "erf(x)", [](Arguments& a) -> List { return {erf(a.tensor(0))}; }},
            {"floor", "floor(x)", [](Arguments& a) -> List { return {floor(a.tensor(0))}; }},
            {"ceil", "ceil(x)", [](Arguments& a) -> List { return {ceil(a.tensor(0))}; }},
            {"round", "round(x)", [](Arguments& a) -> List { return {round(a.tensor(0))}; }},
            {"tanh", "tanh(x)", [](Arguments& a) -> List { return {tanh(a.tensor(0))}; }},
            {"sigmoid", "sigmoid(x)", [](Arguments& a) -> List { return {sigmoid(a.tensor(0))}; }},
            {"relu", "relu(x)", [](Arguments& a) -> List { return {relu(a.tensor(0))}; }},
            {"silu", "silu(x)", [](Arguments& a) -> List { return {silu(a.tensor(0))}; }},
            {"logical_not", "logical_not(x)", [](Arguments& a) -> List { return {logical_not(a.tensor(0))}; }},
            {"isfinite", "isfinite(x)", [](Arguments& a) -> List { return {isfinite(a.tensor(0))}; }},
            {"isnan", "isnan(x)", [](Arguments& a) -> List { return {isnan(a.tensor(0))}; }},
            {"isinf", "isinf(x)", [](Arguments& a) -> List { return {isinf(a.tensor(0))}; }},
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
             [](Arguments& a) -> List {
               return {softplus(a.tensor(0), a.number("beta", 1), a.number("threshold", 20))};
             }},
            {"swiglu", "swiglu(gate, up)", [](Arguments& a) -> List { return {swiglu(a.tensor(0), a.tensor(1))}; }},
            {"cast", "cast(x, dtype=)",
             [](Arguments& a) -> List { return {cast(a.tensor(0), a.dtype("dtype", DType::f32))}; }},

            // Reductions, scans, order.
            {"sum", "sum(x, dim=all, keepdim=false)",
             [](Arguments& a) -> List { return {sum(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
            {"mean", "mean(x, dim=all, keepdim=false)",
             [](Arguments& a) -> List { return {mean(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
            {"amax", "amax(x, dim=all, keepdim=false)",
             [](Arguments& a) -> List { return {amax(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},

            // Shapes and indices.
            {"view", "view(x, shape=)", [](Arguments& a) -> List { return {view(a.tensor(0), a.shape("shape"))}; }},
            {"reshape", "reshape(x, shape=)",
             [](Arguments& a) -> List { return {reshape(a.tensor(0), a.shape("shape"))}; }},
            {"permute", "permute(x, dims=)",
             [](Arguments& a) -> List { return {permute(a.tensor(0), a.list("dims"))}; }},
            {"transpose", "transpose(x, dim0=, dim1=)",
             [](Arguments& a) -> List { return {transpose(a.tensor(0), a.integer("dim0"), a.integer("dim1"))}; }},
            {"expand", "expand(x, shape=)",
             [](Arguments& a) -> List { return {expand(a.tensor(0), a.shape("shape"))}; }},

            // Matrix products, layers, losses.
            {"matmul", "matmul(x, y)", [](Arguments& a) -> List { return {matmul(a.tensor(0), a.tensor(1))}; }},
            {"linear", "linear(x, weight, bias=none)",
             [](Arguments& a) -> List { return {linear(a.tensor(0), a.tensor(1), a.optional_tensor(2))}; }},
            {"rms_norm", "rms_norm(x, weight, eps=1e-6)",
             [](Arguments& a) -> List { return {rms_norm(a.tensor(0), a.tensor(1), a.number("eps", 1e-6))}; }},
            {"embedding", "embedding(ids, weight)",
             [](Arguments& a) -> List { return {embedding(a.tensor(0), a.tensor(1))}; }},
            {"rotary", "rotary(x, theta=10000)",
             [](Arguments& a) -> List { return {rotary(a.tensor(0), a.number("theta", 10000))}; }},
            {"scaled_dot_product_attention", "scaled_dot_product_attention(q, k, v, is_causal=false, scale=1/sqrt(d))",
             [](Arguments& a) -> List {
               return {scaled_dot_product_attention(a.tensor(0), a.tensor(1), a.tensor(2),
                                                    {a.flag("is_causal"), a.number("scale", 0)})};
             }},
            {"cross_entropy", "cross_entropy(logits, target, ignore_index=-100, reduction=mean)",
             [](Arguments& a) -> List {
               std::string r = a.text("reduction", "mean");
               check(r == "none" || r == "sum" || r == "mean", "[cross_entropy] reduction={}: it is none, sum or mean",
                     r);
               Reduction reduction = r == "none" ? Reduction::none : r == "sum" ? Reduction::sum : Reduction::mean;
               return {cross_entropy(a.tensor(0), a.tensor(1), {a.integer("ignore_index", -100), reduction})};
             }},
};

}  // namespace

std::span<const Function> functions() { return list; }

std::vector<DistributedTensor> call_function(std::string_view name, std::span<const DistributedTensor* const> inputs,
                                             const Attributes& attributes) {
  std::vector<std::string> names;
  for (const Function& f : list) {
    names.emplace_back(f.name);
    if (f.name != name) continue;
    Arguments arguments(f.name, inputs, attributes);
    List outputs = f.run(arguments);
    arguments.check_all_used();
    return outputs;
  }
  fail("[call_function] there is no function \"{}\"; the nearest is \"{}\"", name, nearest(name, names));
}

}  // namespace dtensor::ops
