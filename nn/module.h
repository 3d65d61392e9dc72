// Modules: what has parameters and a forward function. Names are those of Hugging Face checkpoints.
#pragma once

#include <set>
#include <tuple>

#include "nn/parameter.h"

namespace dtensor::nn {

// Modules are neither copied nor moved; a member declares itself: Linear q_proj{*this, "q_proj", ...}.
class Module {
 public:
  // The root of a model on a mesh.
  explicit Module(const DeviceMesh& mesh) : mesh_(mesh) {}
  // A child. Errors: a name that is no word, or that the parent has already, of a child or a parameter.
  Module(Module& parent, std::string name);
  // Whichever of parent, children and parameters goes first, the others forget it.
  virtual ~Module();
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
  int64_t parameter_count();  // the elements of all of them
  // Parameters of this module alone.
  const std::vector<Parameter*>& own_parameters() const { return parameters_; }
  // The own parameter of that name, or nullptr.
  Parameter* find_parameter(std::string_view name);

  // Hooks see the tensor inputs before forward, and the tensor outputs after it, and may replace them.
  using Hook = std::function<void(Module&, std::vector<DistributedTensor*>&)>;
  void add_before_hook(Hook h) { before_.push_back(std::move(h)); }
  void add_after_hook(Hook h) { after_.push_back(std::move(h)); }
  // The hooks apart from a call, under the module's label: for what computes several modules in one, as a joint
  // projection does. It runs the before-hooks of each on its inputs, computes, and runs the after-hooks on the outputs.
  void run_before_hooks(std::vector<DistributedTensor*> inputs) { run_labelled(before_, inputs); }
  void run_after_hooks(std::vector<DistributedTensor*> outputs) { run_labelled(after_, outputs); }

 protected:
  bool has_hooks() const { return !before_.empty() || !after_.empty(); }
  void run(const std::vector<Hook>& hooks, std::vector<DistributedTensor*>& tensors) {
    for (const Hook& h : hooks) h(*this, tensors);
  }
  std::vector<Hook> before_, after_;

 private:
  friend class Parameter;
  void collect(std::vector<Module*>& all);
  void run_labelled(const std::vector<Hook>& hooks, std::vector<DistributedTensor*>& tensors);
  std::string claim(const std::string& name);  // its path
  void release(const std::string& path);

  DeviceMesh mesh_;
  std::string path_;
  Module* parent_ = nullptr;
  std::set<std::string, std::less<>> names_;  // of children and own parameters
  std::vector<Module*> children_;
  std::vector<Parameter*> parameters_;
};

// Allocates and fills all parameters of a model that was built on meta.
void materialize(Module& model, uint64_t seed);

// The base of modules that can be called, with the types of their calls:
//
//     class Linear : public Callable<DistributedTensor(const DistributedTensor&)> {
//       DistributedTensor forward(const DistributedTensor& x) override;
//
// module(args...) runs the before-hooks on the tensor arguments, forward, and the after-hooks on a tensor result or the
// tensors of a tuple, under a label with the module's path. forward is virtual: a class derived from Linear that
// overrides it is called as itself. A module that can be called in several ways lists them all.
template <class... Forms>
class Callable;

// The end of the list of forms; the names are for the using-declarations of those before.
template <>
class Callable<> : public Module {
 public:
  using Module::Module;
  void operator()() = delete;
  void forward() = delete;
  void replace_forward() = delete;
  // Neither hooks nor a replaced forward: whoever does what forward does, under the module's label, has called it.
  bool is_plain() const { return !has_hooks(); }

 protected:
  using Tensors = std::vector<DistributedTensor*>;
  static void collect(Tensors& list, DistributedTensor& t) { list.push_back(&t); }
  template <class... T>
  static void collect(Tensors& list, std::tuple<T...>& values) {
    std::apply([&](auto&... v) { (collect(list, v), ...); }, values);
  }
  template <class T>
  static void collect(Tensors&, T&) {}
  template <class T>
  static Tensors tensors_of(T& values) {
    Tensors list;
    collect(list, values);
    return list;
  }
};

template <class R, class... Args, class... More>
class Callable<R(Args...), More...> : public Callable<More...> {
  using Base = Callable<More...>;
  static_assert((!std::is_same_v<Args, DistributedTensor&> && ...),
                "a module takes tensors by value or by const reference: hooks replace its handles, not the caller's");

 public:
  using Base::Base;
  using Base::forward;
  using Base::operator();
  using Base::replace_forward;

  virtual R forward(Args... args) = 0;

  R operator()(Args... args) {
    LabelScope label(this->mesh().rank_state(), Label::Kind::module, this->path());
    if (!this->has_hooks()) return compute(std::forward<Args>(args)...);
    std::tuple<Held<Args>...> held(std::forward<Args>(args)...);
    auto inputs = Base::tensors_of(held);
    this->run(this->before_, inputs);
    R result = std::apply([this](auto&... a) { return compute(std::forward<Args>(a)...); }, held);
    auto outputs = Base::tensors_of(result);
    this->run(this->after_, outputs);
    return result;
  }

  // Calls run `f` in place of forward, between the hooks: to compute jointly with other modules, or while a collective
  // goes on. Errors: one that is replaced already.
  void replace_forward(std::function<R(Args...)> f) {
    check(!replacement_, "[replace_forward] the forward of {} is replaced already", this->path());
    replacement_ = std::move(f);
  }

  bool is_plain() const { return !replacement_ && Base::is_plain(); }

 private:
  // What hooks may replace is held; the rest is passed on.
  template <class A>
  using Held = std::conditional_t<std::is_same_v<std::remove_cvref_t<A>, DistributedTensor>, DistributedTensor, A&&>;

  R compute(Args... args) {
    return replacement_ ? replacement_(std::forward<Args>(args)...) : forward(std::forward<Args>(args)...);
  }

  std::function<R(Args...)> replacement_;
};

// Modules that are owned, by index: layers.0, layers.1, ... A stage of a pipeline has a part of the whole model's and
// begins at another index, so that names, and the initial values that come from them, are the whole model's.
template <class T>
class ModuleList : public Module {
 public:
  ModuleList(Module& parent, std::string name, int64_t first_index = 0)
      : Module(parent, std::move(name)), first_(first_index) {
    check(first_index >= 0, "[ModuleList] the first index of {} is {}, which is negative", path(), first_index);
  }
  std::string_view kind() const override { return "ModuleList"; }
  // The next one; U may be derived from T.
  template <class U = T, class... Args>
  U& emplace_back(const Args&... args) {
    auto made = std::make_unique<U>(*this, std::to_string(end_index()), args...);
    U& module = *made;
    list_.push_back(std::move(made));
    return module;
  }
  size_t size() const { return list_.size(); }
  // The indices that are here: first_index(), ..., end_index() - 1.
  int64_t first_index() const { return first_; }
  int64_t end_index() const { return first_ + int64_t(list_.size()); }
  // By index, the number in the name: layers[4] is layers.4 on every stage. Errors: one that is not here.
  T& operator[](int64_t index) {
    check(index >= first_ && index < end_index(), "[ModuleList] there is no {}.{}: the list has {} of them, from {} on",
          path(), index, list_.size(), first_);
    return *list_[size_t(index - first_)];
  }

  // for (T& layer : layers)
  class Iterator {
   public:
    using value_type = T;
    using difference_type = std::ptrdiff_t;
    explicit Iterator(const std::unique_ptr<T>* at = nullptr) : at_(at) {}
    T& operator*() const { return **at_; }
    T* operator->() const { return at_->get(); }
    Iterator& operator++() { return ++at_, *this; }
    Iterator operator++(int) { return Iterator(at_++); }
    bool operator==(const Iterator&) const = default;

   private:
    const std::unique_ptr<T>* at_;
  };
  Iterator begin() { return Iterator(list_.data()); }
  Iterator end() { return Iterator(list_.data() + list_.size()); }

 private:
  int64_t first_;
  std::vector<std::unique_ptr<T>> list_;
};

}  // namespace dtensor::nn
