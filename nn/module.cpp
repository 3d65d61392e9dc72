#include "nn/module.h"

namespace dtensor::nn {

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

void Module::collect(std::vector<Module*>& all) {
  all.push_back(this);
  for (Module* child : children_) child->collect(all);
}

std::vector<Module*> Module::modules() {
  std::vector<Module*> all;
  collect(all);
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
