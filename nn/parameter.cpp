#include "nn/parameter.h"

#include <fmt/format.h>

#include "dtensor/random.h"
#include "dtensor/redistribute.h"
#include "nn/module.h"
#include "ops/pointwise/cast.h"

namespace dtensor::nn {

ParameterForm ParameterForm::cast(DType dtype) {
  return {.names = {std::string(name(dtype))},
          .make = [dtype](const DistributedTensor& stored) { return std::vector{ops::cast(stored, dtype)}; },
          .is_cast = true};
}

Parameter::Parameter(Module& owner, std::string name, const Shape& shape, Init init) : owner_(&owner), init_(init) {
  const DeviceMesh& mesh = owner.mesh();
  stored_ =
      DistributedTensor::empty(mesh, mesh.intern({DType::f32, shape, {}}), Tensor::placeholder(DType::f32, shape));
  path_ = owner.claim(name);
  owner.parameters_.push_back(this);
}

Parameter::~Parameter() {
  if (!owner_) return;
  std::erase(owner_->parameters_, this);
  owner_->release(path_);
}

std::span<const DistributedTensor> Parameter::tensors() const {
  return formed_.empty() ? std::span(&stored_, 1) : std::span(formed_);
}

// Shards of dimensions that a tensor of the form has not, as a scale has not the data's, are whole for use.
Layout Parameter::used_layout(size_t tensor) const {
  const DistributedTensor& x = tensors()[tensor];
  Layout layout = used_;
  for (int d = 0; d < shape().dims(); ++d)
    if (d >= x.dims() || x.shape()[d] != shape()[d]) layout.split[size_t(d)] = {};
  return layout;
}

DistributedTensor Parameter::for_use(size_t tensor) const {
  if (group_)
    if (DistributedTensor provided = group_->tensor(*this, tensor); provided.defined()) return provided;
  const DistributedTensor& x = tensors()[tensor];
  Layout layout = used_layout(tensor);
  return x.layout() == layout && !x.is_on_host() ? x : x.redistribute(layout, {.remake = true});
}

DistributedTensor Parameter::operator()() const { return for_use(0); }

DistributedTensor Parameter::operator()(std::string_view name) const {
  const std::vector<std::string> none;
  const std::vector<std::string>& names = form_ ? form_->names : none;
  auto it = std::find(names.begin(), names.end(), name);
  check(it != names.end(), "[Parameter] {} is not computed with a tensor \"{}\"; its form has [{}]", path_, name,
        fmt::join(names, ", "));
  check(!formed_.empty(), "[Parameter] {} has no values yet: materialize() it first", path_);
  return for_use(size_t(it - names.begin()));
}

void Parameter::store_as(const Layout& layout) {
  check(stored_.is_meta(), "[Parameter] {} has values already: apply plans before materialize()", path_);
  const DeviceMesh& mesh = stored_.mesh();
  SpecHandle spec = mesh.intern({stored_.dtype(), shape(), layout});
  stored_ = DistributedTensor::empty(mesh, spec, Tensor::placeholder(spec->dtype, spec->local_shape));
}

void Parameter::compute_with(ParameterForm form) {
  check(stored_.is_meta(), "[Parameter] {} has values already: choose its form before materialize()", path_);
  check(!form.names.empty() && form.make, "[Parameter] {}: a form needs names and a function that makes its tensors",
        path_);
  form_ = std::move(form);
}

void Parameter::compute_in(DType dtype) {
  check(is_floating(dtype), "[Parameter] {} cannot be computed with in {}", path_, name(dtype));
  check(stored_.is_meta(), "[Parameter] {} has values already: choose its form before materialize()", path_);
  form_.reset();
  if (dtype != stored_.dtype()) compute_with(ParameterForm::cast(dtype));
}

std::vector<DistributedTensor> Parameter::make_form() const {
  NoGrad scope(stored_.mesh().rank_state());
  std::vector<DistributedTensor> made = form_->make(stored_);
  check(made.size() == form_->names.size(), "[Parameter] {}: its form makes {} tensors, but has the names [{}]", path_,
        made.size(), fmt::join(form_->names, ", "));
  check(made[0].shape() == shape() && made[0].layout() == stored_.layout(),
        "[Parameter] {}: the first tensor of its form is {}; it needs the shape and layout of {}", path_,
        to_string(made[0]), to_string(stored_));
  return made;
}

void Parameter::renew() {
  if (formed_.empty()) return;
  std::vector<DistributedTensor> made = make_form();
  for (size_t i = 0; i < made.size(); ++i) formed_[i].copy_(made[i]);
}

void Parameter::place(int axis, Placement p) {
  if (p.is_shard()) p = Shard(normalize_dim("Parameter::place", p.dim, stored_.dims()));
  store_as(stored_.layout().with(axis, p));
  used_ = stored_.layout();
}

void Parameter::shard_storage(int axis) {
  check(stored_.dims() > 0, "[fully_shard] {} has no dimension to shard", path_);
  store_as(stored_.layout().with_innermost(axis, 0));
}

void Parameter::offload() {
  check(stored_.is_meta(), "[Parameter] {} has values already: offload it before materialize()", path_);
  offloaded_ = true;
}

void Parameter::fill_initially(uint64_t seed) {
  if (init_.kind == Init::Kind::normal)
    fill_normal(stored_, {.seed = seed, .purpose = "init", .path = path_}, 0, init_.std);
  else
    fill(stored_.local_for_writing(), init_.kind == Init::Kind::ones ? 1 : 0);
  const DeviceMesh& mesh = stored_.mesh();
  Range rows = init_.zero_row < 0 ? Range() : local_box(mesh.shape(), shape(), stored_.layout(), mesh.rank())[0];
  if (init_.zero_row >= rows.begin && init_.zero_row < rows.end)
    fill(stored_.local_for_writing().narrow(0, init_.zero_row - rows.begin, 1), 0);
}

void Parameter::materialize(uint64_t seed) {
  const Rank& rank = stored_.mesh().rank_state();
  stored_.materialize(offloaded_ ? rank.host_allocator() : rank.allocator());
  if (!stored_.is_meta()) fill_initially(seed);  // no dry run
  if (form_) formed_ = make_form();
}

}  // namespace dtensor::nn
