// Parameters: the tensors of a module that are trained.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dtensor/distributed_tensor.h"
#include "nn/gradient_reduction.h"

namespace dtensor::nn {

class Module;
class Parameter;

// Parameters that are brought together for use, and whose gradients are reduced together, as fully sharded ones are
// (nn/parallel/fully_shard.h).
class ParameterGroup {
 public:
  virtual ~ParameterGroup() = default;
  virtual const std::vector<Parameter*>& parameters() const = 0;
  // What is there now to compute with: one of the tensors of p's form, by its index. Undefined: nothing, and p brings
  // its own tensor to the layout for use.
  virtual DistributedTensor tensor(const Parameter& p, size_t index) const = 0;
  virtual GradientReduction reduction() const { return {}; }
};

// How a parameter begins.
struct Init {
  enum class Kind : uint8_t { normal, ones, zeros };
  Kind kind = Kind::zeros;
  double std = 0;
  int64_t zero_row = -1;  // which is 0 all the same; -1: none
  static Init normal(double std, int64_t zero_row = -1) { return {Kind::normal, std, zero_row}; }
  static Init ones() { return {Kind::ones, 0, -1}; }
  static Init zeros() { return {Kind::zeros, 0, -1}; }
};

// What is computed with in place of the stored tensor: one or more tensors made from it, as float8 needs data and
// scale.
struct ParameterForm {
  std::vector<std::string> names;  // of the tensors; the first is the value, whose gradient is the parameter's
  // Makes them from what is stored, which may be shards. The first has its shape and layout.
  std::function<std::vector<DistributedTensor>(const DistributedTensor& stored)> make;
  // The one tensor is the stored one in another type: on CUDA optimizers write it as they write the stored one.
  bool is_cast = false;

  static ParameterForm cast(DType dtype);
};

// A tensor that is trained. It is born on meta, Replicate; a plan places it; materialize() gives each rank its part.
// Stored and used may differ: in the layout, where storage is sharded further than use, and in the form, where f32 is
// computed with in bf16, say.
class Parameter {
 public:
  // Errors: a name that is no word, or that the owner has already.
  Parameter(Module& owner, std::string name, const Shape& shape, Init init);
  ~Parameter();
  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  // False: it is used, placed and stored as others are, but has no gradient, and optimizers leave it as it is. Said
  // before an optimizer is made.
  bool requires_grad = true;

  const std::string& path() const { return path_; }  // "model.norm.weight"
  const Shape& shape() const { return stored_.shape(); }
  // As stored: what optimizers and checkpoints see.
  DistributedTensor& stored() { return stored_; }
  const DistributedTensor& stored() const { return stored_; }
  // What is computed with, as stored: stored() itself, or the first tensor of its form. Stores watch this one.
  DistributedTensor& value() { return formed_.empty() ? stored_ : formed_[0]; }
  const DistributedTensor& value() const { return formed_.empty() ? stored_ : formed_[0]; }
  // From now on computing is with another form. Errors: a parameter that has values already.
  void compute_with(ParameterForm form);
  // The same with a copy in another type, bf16; in its own type there is no copy.
  void compute_in(DType dtype);
  // Makes the form again from what is stored, in place: after an optimizer or a checkpoint has written stored().
  void renew();
  // Whether the form is a copy in another type, which an optimizer may write itself.
  bool is_cast() const { return form_ && form_->is_cast; }
  // For use in a forward function: the group's tensor while there is one, else brought to its layout for use, which a
  // record may drop and remake.
  DistributedTensor operator()() const;
  // The same of one tensor of the form, by name: weight("scale").
  DistributedTensor operator()(std::string_view name) const;
  // The placement along one axis, stored and used. Errors: a parameter that has values already; a missing dimension.
  void place(int axis, Placement p);
  // Stored in shards of dimension 0 along one axis, innermost; used as before. Errors: a parameter that has values
  // already, or no dimension.
  void shard_storage(int axis);
  // Stored in the rank's host memory, its form and what optimizers keep of it too; brought to the device for use. On
  // the CPU that is the same memory. Errors: a parameter that has values already.
  void offload();
  // From now on the group provides what is computed with.
  void join(std::shared_ptr<ParameterGroup> group) { group_ = std::move(group); }
  const std::shared_ptr<ParameterGroup>& group() const { return group_; }
  // The tensors of the form, as stored: value() is the first. And the layouts in which they are used.
  std::span<const DistributedTensor> tensors() const;
  Layout used_layout(size_t tensor = 0) const;
  // Allocates this rank's part and fills it, each element by its global index (law 5).
  void materialize(uint64_t seed);

 private:
  friend class Module;
  void store_as(const Layout& layout);
  void fill_initially(uint64_t seed);
  std::vector<DistributedTensor> make_form() const;
  DistributedTensor for_use(size_t tensor) const;

  Module* owner_;  // nullptr: it was destroyed first
  std::string path_;
  Init init_;
  DistributedTensor stored_;
  std::optional<ParameterForm> form_;
  std::vector<DistributedTensor> formed_;  // the form's tensors, from materialize() on
  Layout used_;
  bool offloaded_ = false;
  std::shared_ptr<ParameterGroup> group_;
};

}  // namespace dtensor::nn
