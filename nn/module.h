// Modules: what has parameters and a forward function. Names are those of Hugging Face checkpoints.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "dtensor/redistribute.h"

namespace dtensor::nn {

class Module;
class Parameter;

// Parameters that are brought together and sharded again as one: nn/parallel/fully_shard.h.
struct ParameterGroup {
  std::vector<Parameter*> parameters;
  Module* module = nullptr;  // before whose forward they are brought together
  bool reshard_after_forward = true;
  // The group that is used next, brought together while this one's module computes, and how far that is.
  std::weak_ptr<ParameterGroup> next = {};
  Redistribution unsharding = {};
  std::vector<uint32_t> versions = {};  // of the values that are on their way
};

// How a parameter begins.
struct Init {
  enum class Kind : uint8_t { normal, ones, zeros };
  Kind kind = Kind::zeros;
  double std = 0;
  static Init normal(double std) { return {Kind::normal, std}; }
  static Init ones() { return {Kind::ones, 0}; }
  static Init zeros() { return {Kind::zeros, 0}; }
};

// A tensor that is trained. It is born on meta, Replicate; a plan places it; materialize() gives each rank its part.
// Stored and used may differ: fully sharded parameters are stored in shards and brought together for use, and f32 ones
// may be computed with in bf16.
class Parameter {
 public:
  Parameter(Module& owner, std::string name, const Shape& shape, Init init);
  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  const std::string& path() const { return path_; }  // "model.norm.weight"
  const Shape& shape() const { return stored_.shape(); }
  // As stored: what optimizers and checkpoints see.
  DistributedTensor& stored() { return stored_; }
  const DistributedTensor& stored() const { return stored_; }
  // What is computed with, as stored: stored() itself, or its copy in the type for computing. Stores watch this one.
  DistributedTensor& value() { return copy_.defined() ? copy_ : stored_; }
  const DistributedTensor& value() const { return copy_.defined() ? copy_ : stored_; }
  // From now on computing is in bf16, with a copy that the optimizer renews. Errors: a parameter that has values
  // already.
  void compute_in(DType dtype);
  // For use in a forward function: the group's copy while there is one, else brought to its layout for use, which a
  // record may drop and remake.
  DistributedTensor operator()() const;
  // The placement along one axis, stored and used. Errors: a parameter that has values already; a missing dimension.
  void place(int axis, Placement p);
  // Stored in shards of dimension 0 along one axis, innermost; used as before. Errors: a parameter that has values
  // already, is in a group already, or has no dimension.
  void shard_storage(int axis, std::shared_ptr<ParameterGroup> group);
  const std::shared_ptr<ParameterGroup>& group() const { return group_; }
  const Layout& used_layout() const { return used_; }
  // Of a group: the copy in the layout for use.
  void set_unsharded(DistributedTensor copy) { unsharded_ = std::move(copy); }
  // Allocates this rank's part and fills it, each element by its global index (law 5).
  void materialize(uint64_t seed);

 private:
  std::string path_;
  Init init_;
  void store_as(const Layout& layout);
  DistributedTensor meta(DType dtype, const Layout& layout) const;

  DistributedTensor stored_, copy_, unsharded_;
  Layout used_;
  std::shared_ptr<ParameterGroup> group_;
};

// Modules are neither copied nor moved; a member declares itself: Linear q_proj{*this, "q_proj", ...}.
class Module {
 public:
  // The root of a model on a mesh.
  explicit Module(const DeviceMesh& mesh) : mesh_(mesh) {}
  Module(Module& parent, std::string name);
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const DeviceMesh& mesh() const { return mesh_; }
  const std::string& path() const { return path_; }  // "model.layers.0.self_attn"; "" is the root
  virtual std::string_view kind() const = 0;         // "Linear"
  // Names of the tensor inputs of forward, to which keyword layouts of plans refer.
  std::vector<std::string> input_names;

  // This module and all below it, in the order of declaration.
  std::vector<Module*> modules();
  std::vector<Parameter*> parameters();
  // Parameters of this module alone.
  const std::vector<Parameter*>& own_parameters() const { return parameters_; }
  // The own parameter of that name, or nullptr.
  Parameter* find_parameter(std::string_view name);

  // Hooks see the tensor inputs before forward, and the tensor outputs after it, and may replace them.
  using Hook = std::function<void(Module&, std::vector<DistributedTensor*>&)>;
  void add_before_hook(Hook h) { before_.push_back(std::move(h)); }
  void add_after_hook(Hook h) { after_.push_back(std::move(h)); }

 protected:
  std::vector<Hook> before_, after_;

 private:
  friend class Parameter;
  DeviceMesh mesh_;
  std::string path_;
  std::vector<Module*> children_;
  std::vector<Parameter*> parameters_;
};

// Allocates and fills all parameters of a model that was built on meta.
void materialize(Module& model, uint64_t seed);

// The base of modules that can be called: module(args...) runs the before-hooks on the tensor arguments, Self::forward,
// and the after-hooks on a tensor result or a tuple of them, under a label with the module's path.
template <class Self>
class Callable : public Module {
 public:
  using Module::Module;

  template <class... Args>
  auto operator()(Args&&... args) {
    LabelScope label(mesh().rank_state(), Label::Kind::module, path());
    std::tuple<Held<Args>...> held(std::forward<Args>(args)...);
    if (!before_.empty()) run(before_, held);
    auto result = std::apply([this](auto&... a) { return static_cast<Self*>(this)->forward(a...); }, held);
    if (!after_.empty()) {
      if constexpr (std::is_same_v<decltype(result), DistributedTensor>) {
        std::tuple<DistributedTensor&> one(result);
        run(after_, one);
      } else {
        run(after_, result);
      }
    }
    return result;
  }

 private:
  template <class A>
  using Held = std::conditional_t<std::is_same_v<std::remove_cvref_t<A>, DistributedTensor>, DistributedTensor, A&&>;

  template <class Tuple>
  void run(const std::vector<Hook>& hooks, Tuple& values) {
    std::vector<DistributedTensor*> tensors;
    std::apply([&](auto&... v) { (collect(tensors, v), ...); }, values);
    for (const Hook& h : hooks) h(*this, tensors);
  }
  static void collect(std::vector<DistributedTensor*>& tensors, DistributedTensor& t) { tensors.push_back(&t); }
  template <class T>
  static void collect(std::vector<DistributedTensor*>&, T&) {}
};

// Modules that are owned, by index: layers.0, layers.1, ...
template <class T>
class ModuleList : public Module {
 public:
  using Module::Module;
  std::string_view kind() const override { return "ModuleList"; }
  template <class... Args>
  T& emplace_back(const Args&... args) {
    list_.push_back(std::make_unique<T>(*this, std::to_string(list_.size()), args...));
    return *list_.back();
  }
  size_t size() const { return list_.size(); }
  T& operator[](size_t i) { return *list_[i]; }
  auto begin() { return list_.begin(); }
  auto end() { return list_.end(); }

 private:
  std::vector<std::unique_ptr<T>> list_;
};

}  // namespace dtensor::nn
