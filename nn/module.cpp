#include "nn/module.h"

#include <fmt/format.h>

#include "dtensor/random.h"
#include "dtensor/redistribute.h"
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

// Shards of dimensions that a tensor of the form has not, as a scale has not the data's, are whole for use.
DistributedTensor Parameter::for_use(const DistributedTensor& x) const {
  Layout layout = used_;
  for (int d = 0; d < shape().dims(); ++d)
    if (d >= x.dims() || x.shape()[d] != shape()[d]) layout.split[size_t(d)] = {};
  return x.layout() == layout ? x : x.redistribute(layout, {.remake = true});
}

DistributedTensor Parameter::operator()() const { return unsharded_.defined() ? unsharded_ : for_use(value()); }

DistributedTensor Parameter::operator()(std::string_view name) const {
  const std::vector<std::string> none;
  const std::vector<std::string>& names = form_ ? form_->names : none;
  auto it = std::find(names.begin(), names.end(), name);
  check(it != names.end(), "[Parameter] {} is not computed with a tensor \"{}\"; its form has [{}]", path_, name,
        fmt::join(names, ", "));
  check(!formed_.empty(), "[Parameter] {} has no values yet: materialize() it first", path_);
  return it == names.begin() ? (*this)() : for_use(formed_[size_t(it - names.begin())]);
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

void Parameter::shard_storage(int axis, std::shared_ptr<ParameterGroup> group) {
  check(stored_.dims() > 0, "[fully_shard] {} has no dimension to shard", path_);
  store_as(stored_.layout().with_innermost(axis, 0));
  group_ = std::move(group);
}

void Parameter::materialize(uint64_t seed) {
  stored_.materialize();
  if (!stored_.is_meta()) {  // no dry run
    if (init_.kind == Init::Kind::normal)
      fill_normal(stored_, {.seed = seed, .purpose = "init", .path = path_}, 0, init_.std);
    else
      fill(stored_.local_for_writing(), init_.kind == Init::Kind::ones ? 1 : 0);
  }
  if (form_) formed_ = make_form();
}

Module::Module(Module& parent, std::string name) : mesh_(parent.mesh_), path_(parent.claim(name)), parent_(&parent) {
  parent.children_.push_back(this);
}

Module::~Module() {
  for (Module* child : children_) child->parent_ = nullptr;
  for (Parameter* p : parameters_) p->owner_ = nullptr;
  if (!parent_) return;
  std::erase(parent_->children_, this);
  parent_->release(path_);
}

std::string Module::claim(const std::string& name) {
  check(!name.empty() && name.find('.') == std::string::npos,
        "[Module] \"{}\" is no name for a part of {}: a name has letters, and no dots", name,
        path_.empty() ? "the root module" : path_);
  std::string path = path_.empty() ? name : path_ + "." + name;
  check(names_.insert(name).second, "[Module] there is a {} already: give this child or parameter another name", path);
  return path;
}

void Module::release(const std::string& path) { names_.erase(path.substr(path.rfind('.') + 1)); }

void Module::run_labelled(const std::vector<Hook>& hooks, std::vector<DistributedTensor*>& tensors) {
  LabelScope label(mesh().rank_state(), Label::Kind::module, path());
  run(hooks, tensors);
}

std::vector<Module*> Module::modules() {
  std::vector<Module*> all{this};
  for (Module* child : children_) {
    auto below = child->modules();
    all.insert(all.end(), below.begin(), below.end());
  }
  return all;
}

std::vector<Parameter*> Module::parameters() {
  std::vector<Parameter*> all;
  for (Module* m : modules()) all.insert(all.end(), m->parameters_.begin(), m->parameters_.end());
  return all;
}

int64_t Module::parameter_count() {
  int64_t n = 0;
  for (const Parameter* p : parameters()) n += numel(p->shape());
  return n;
}

Parameter* Module::find_parameter(std::string_view name) {
  for (Parameter* p : parameters_)
    if (std::string_view(p->path()).substr(path_.empty() ? 0 : path_.size() + 1) == name) return p;
  return nullptr;
}

void materialize(Module& model, uint64_t seed) {
  for (Parameter* p : model.parameters()) p->materialize(seed);
}

}  // namespace dtensor::nn
