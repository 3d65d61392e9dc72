#include "nn/module.h"

#include "dtensor/random.h"
#include "dtensor/redistribute.h"
#include "ops/cast.h"

namespace dtensor::nn {

namespace {
std::string join(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }
}  // namespace

Parameter::Parameter(Module& owner, std::string name, const Shape& shape, Init init)
    : path_(join(owner.path(), name)), init_(init) {
  const DeviceMesh& mesh = owner.mesh();
  stored_ =
      DistributedTensor::empty(mesh, mesh.intern({DType::f32, shape, {}}), Tensor::placeholder(DType::f32, shape));
  owner.parameters_.push_back(this);
}

DistributedTensor Parameter::operator()() const {
  if (unsharded_.defined()) return unsharded_;
  if (stored_.layout() == used_) return value();
  return value().redistribute(used_, {.remake = true});
}

void Parameter::store_as(const Layout& layout) {
  check(stored_.is_meta(), "[Parameter] {} has values already: apply plans before materialize()", path_);
  stored_ = meta(stored_.dtype(), layout);
  if (copy_.defined()) copy_ = meta(copy_.dtype(), layout);
}

DistributedTensor Parameter::meta(DType dtype, const Layout& layout) const {
  const DeviceMesh& mesh = stored_.mesh();
  const LocalSpec* spec = mesh.intern({dtype, shape(), layout});
  return DistributedTensor::empty(mesh, spec, Tensor::placeholder(spec->dtype, spec->local_shape));
}

void Parameter::compute_in(DType dtype) {
  check(stored_.is_meta(), "[Parameter] {} has values already: choose the type before materialize()", path_);
  check(is_floating(dtype), "[Parameter] {} cannot be computed with in {}", path_, name(dtype));
  copy_ = dtype == stored_.dtype() ? DistributedTensor() : meta(dtype, stored_.layout());
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
  if (copy_.defined()) copy_.materialize();
  if (stored_.is_meta()) return;  // a dry run
  if (init_.kind == Init::Kind::normal)
    fill_normal(stored_, {.seed = seed, .purpose = "init", .path = path_}, 0, init_.std);
  else
    fill(stored_.local_for_writing(), init_.kind == Init::Kind::ones ? 1 : 0);
  if (!copy_.defined()) return;
  NoGrad scope(stored_.mesh().rank_state());
  copy_.copy_(ops::cast(stored_, copy_.dtype()));
}

Module::Module(Module& parent, std::string name) : mesh_(parent.mesh_), path_(join(parent.path_, name)) {
  parent.children_.push_back(this);
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

Parameter* Module::find_parameter(std::string_view name) {
  for (Parameter* p : parameters_)
    if (std::string_view(p->path()).substr(path_.empty() ? 0 : path_.size() + 1) == name) return p;
  return nullptr;
}

void materialize(Module& model, uint64_t seed) {
  for (Parameter* p : model.parameters()) p->materialize(seed);
}

}  // namespace dtensor::nn
