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

Reduction reduction_of(Arguments& a, const char* who) {
  std::string r = a.text("reduction", "mean");
  check(r == "none" || r == "sum" || r == "mean", "[{}] reduction={}: it is none, sum or mean", who, r);
  return r == "none" ? Reduction::none : r == "sum" ? Reduction::sum : Reduction::mean;
}
RandomStream stream_of(Arguments& a, const char* purpose) {
  return {.seed = uint64_t(a.integer("seed", 0)), .purpose = purpose};
}

using List = std::vector<DistributedTensor>;

constexpr Function list[] = {
    // Pointwise.
    {"add", "add(x, y | value=)",
     [](Arguments& a) -> List {
       return {a.has("value") ? add(a.tensor(0), a.number("value")) : add(a.tensor(0), a.tensor(1))};
     }},
    {"sub", "sub(x, y)", [](Arguments& a) -> List { return {sub(a.tensor(0), a.tensor(1))}; }},
    {"mul", "mul(x, y | value=)",
     [](Arguments& a) -> List {
       return {a.has("value") ? mul(a.tensor(0), a.number("value")) : mul(a.tensor(0), a.tensor(1))};
     }},
    {"div", "div(x, y)", [](Arguments& a) -> List { return {div(a.tensor(0), a.tensor(1))}; }},
    {"maximum", "maximum(x, y)", [](Arguments& a) -> List { return {maximum(a.tensor(0), a.tensor(1))}; }},
    {"minimum", "minimum(x, y)", [](Arguments& a) -> List { return {minimum(a.tensor(0), a.tensor(1))}; }},
    {"neg", "neg(x)", [](Arguments& a) -> List { return {neg(a.tensor(0))}; }},
    {"abs", "abs(x)", [](Arguments& a) -> List { return {abs(a.tensor(0))}; }},
    {"exp", "exp(x)", [](Arguments& a) -> List { return {exp(a.tensor(0))}; }},
    {"log", "log(x)", [](Arguments& a) -> List { return {log(a.tensor(0))}; }},
    {"sqrt", "sqrt(x)", [](Arguments& a) -> List { return {sqrt(a.tensor(0))}; }},
    {"rsqrt", "rsqrt(x)", [](Arguments& a) -> List { return {rsqrt(a.tensor(0))}; }},
    {"square", "square(x)", [](Arguments& a) -> List { return {square(a.tensor(0))}; }},
    {"reciprocal", "reciprocal(x)", [](Arguments& a) -> List { return {reciprocal(a.tensor(0))}; }},
    {"tanh", "tanh(x)", [](Arguments& a) -> List { return {tanh(a.tensor(0))}; }},
    {"sigmoid", "sigmoid(x)", [](Arguments& a) -> List { return {sigmoid(a.tensor(0))}; }},
    {"relu", "relu(x)", [](Arguments& a) -> List { return {relu(a.tensor(0))}; }},
    {"gelu", "gelu(x)", [](Arguments& a) -> List { return {gelu(a.tensor(0))}; }},
    {"silu", "silu(x)", [](Arguments& a) -> List { return {silu(a.tensor(0))}; }},
    {"swiglu", "swiglu(gate, up)", [](Arguments& a) -> List { return {swiglu(a.tensor(0), a.tensor(1))}; }},
    {"cast", "cast(x, dtype=)", [](Arguments& a) -> List { return {cast(a.tensor(0), a.dtype("dtype", DType::f32))}; }},

    // Reductions, scans, order.
    {"sum", "sum(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {sum(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"mean", "mean(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {mean(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"amax", "amax(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {amax(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"prod", "prod(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {prod(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"amin", "amin(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {amin(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"any", "any(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {any(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
    {"all", "all(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {all(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
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
    {"logsumexp", "logsumexp(x, dim=all, keepdim=false)",
     [](Arguments& a) -> List { return {logsumexp(a.tensor(0), a.dims(), a.flag("keepdim"))}; }},
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

    // Shapes and indices.
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
    {"gather", "gather(x, index, dim=)",
     [](Arguments& a) -> List { return {gather(a.tensor(0), a.integer("dim"), a.tensor(1))}; }},
    {"scatter_add", "scatter_add(x, index, source, dim=)",
     [](Arguments& a) -> List { return {scatter_add(a.tensor(0), a.integer("dim"), a.tensor(1), a.tensor(2))}; }},
    {"one_hot", "one_hot(x, num_classes=)",
     [](Arguments& a) -> List { return {one_hot(a.tensor(0), a.integer("num_classes"))}; }},

    // Matrix products, layers, losses.
    {"matmul", "matmul(x, y)", [](Arguments& a) -> List { return {matmul(a.tensor(0), a.tensor(1))}; }},
    {"bmm", "bmm(x, y)", [](Arguments& a) -> List { return {bmm(a.tensor(0), a.tensor(1))}; }},
    {"einsum", "einsum(operands... | equation=)",
     [](Arguments& a) -> List {
       List operands = a.tensors();
       std::vector<const DistributedTensor*> list;
       for (const DistributedTensor& x : operands) list.push_back(&x);
       return {einsum(a.text("equation"), list)};
     }},
    {"linear", "linear(x, weight, bias=none)",
     [](Arguments& a) -> List { return {linear(a.tensor(0), a.tensor(1), a.optional_tensor(2))}; }},
    {"rms_norm", "rms_norm(x, weight, eps=1e-6)",
     [](Arguments& a) -> List { return {rms_norm(a.tensor(0), a.tensor(1), a.number("eps", 1e-6))}; }},
    {"layer_norm", "layer_norm(x, weight=none, bias=none, normalized_shape=, eps=1e-5)",
     [](Arguments& a) -> List {
       return {layer_norm(a.tensor(0), a.shape("normalized_shape"), a.optional_tensor(1), a.optional_tensor(2),
                          a.number("eps", 1e-5))};
     }},
    {"embedding", "embedding(ids, weight)", [](Arguments& a) -> List { return {embedding(a.tensor(0), a.tensor(1))}; }},
    {"rotary", "rotary(x, theta=10000)",
     [](Arguments& a) -> List { return {rotary(a.tensor(0), a.number("theta", 10000))}; }},
    {"scaled_dot_product_attention",
     "scaled_dot_product_attention(q, k, v, attn_mask=none, dropout_p=0, is_causal=false, scale=1/sqrt(d), seed=0)",
     [](Arguments& a) -> List {
       return {scaled_dot_product_attention(a.tensor(0), a.tensor(1), a.tensor(2),
                                            {.causal = a.flag("is_causal"),
                                             .scale = a.number("scale", 0),
                                             .attn_mask = a.optional_tensor(3),
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
    {"mse_loss", "mse_loss(input, target, reduction=mean)",
     [](Arguments& a) -> List { return {mse_loss(a.tensor(0), a.tensor(1), reduction_of(a, "mse_loss"))}; }},
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
