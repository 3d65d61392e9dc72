#include "dtensor/distributed_tensor.h"

#include <ostream>

#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

// "cpu", "cuda:1"
std::string place(Device device, int index) {
  return device == Device::cuda ? fmt::format("{}:{}", name(device), index) : std::string(name(device));
}

// Whether it is where the rank's tensors are: its kernels reach no other device.
bool is_on(const Rank& rank, const Tensor& t) {
  if (t.device() != rank.device()) return false;
  return t.device() != Device::cuda || t.allocator()->device_index() == rank.allocator()->device_index();
}

}  // namespace

void fail_undefined(std::string_view who, size_t operand) {
  fail("[{}] operand {} is undefined (a gradient that nothing led to?)", who, operand);
}

void DistributedTensor::fail_undefined(const char* who) {
  fail("[{}] the tensor is undefined (a gradient that nothing led to?)", who);
}

DistributedTensor DistributedTensor::empty(const DeviceMesh& mesh, SpecHandle spec, Tensor local) {
  DistributedTensor x;
  x.value_ = std::make_shared<Value>(Value{mesh, std::move(spec), std::move(local), mesh.rank_state().next_id()});
  return x;
}

DistributedTensor DistributedTensor::empty(const DeviceMesh& mesh, const TensorSpec& spec) {
  SpecHandle s = mesh.intern(spec);
  Rank& rank = mesh.rank_state();
  return empty(mesh, s, Tensor(rank.allocator(), s->local_dtype, s->local_shape, rank.device()));
}

DistributedTensor DistributedTensor::from_local(const Tensor& local, const DeviceMesh& mesh, const Layout& layout,
                                                const Shape& shape) {
  Rank& rank = mesh.rank_state();
  if (local.device() != Device::meta && !is_on(rank, local))
    fail("[from_local] the part {}{} is on {}, but the tensors of rank {} are on {}: use .to(rank.allocator())",
         name(local.dtype()), to_string(local.shape()), place(local.device(), local.allocator()->device_index()),
         rank.rank(), place(rank.device(), rank.allocator()->device_index()));
  SpecHandle s = mesh.intern({local.dtype(), shape, layout});
  if (local.shape() != s->local_shape)
    fail("[from_local] the part of {} on rank {} has shape {}, not {}", to_string(TensorSpec(*s), mesh.shape()),
         mesh.rank(), to_string(s->local_shape), to_string(local.shape()));
  return empty(mesh, s, local.to(s->local_dtype));
}

DistributedTensor DistributedTensor::distribute(const Tensor& whole, const DeviceMesh& mesh, const Layout& layout) {
  Rank& rank = mesh.rank_state();
  Tensor here = is_on(rank, whole) ? whole : whole.to(rank.allocator());
  DistributedTensor x = empty(mesh, mesh.intern({whole.dtype(), whole.shape(), Layout()}), here);
  NoGrad scope(rank);
  return x.redistribute(layout);  // from Replicate every step is local
}

DistributedTensor DistributedTensor::distribute(const Tensor& whole, const DeviceMesh& mesh,
                                                std::initializer_list<Placement> placements) {
  return distribute(
      whole, mesh,
      normalize("distribute", mesh.shape(), whole.dims(), std::span(placements.begin(), placements.size())));
}

DistributedTensor DistributedTensor::distribute(const Tensor& whole, const DeviceMesh& mesh, std::string_view layout) {
  return distribute(whole, mesh, parse_layout(layout, mesh.shape(), whole.dims()));
}

bool DistributedTensor::is_on_host() const {
  const Value& v = value("is_on_host");
  const Rank& rank = v.mesh.rank_state();
  return v.local.allocator() == rank.host_allocator() && rank.host_allocator() != rank.allocator();
}

DistributedTensor DistributedTensor::redistribute(const Layout& layout, const RedistributeOptions& options) const {
  return dtensor::redistribute(std::span(this, 1), std::span(&layout, 1), options)[0];
}

DistributedTensor DistributedTensor::redistribute(const Layout& layout) const {
  return redistribute(layout, RedistributeOptions{});
}

DistributedTensor DistributedTensor::redistribute(std::initializer_list<Placement> placements) const {
  value("redistribute");
  return redistribute(normalize("redistribute", mesh().shape(), dims(),
                                std::span(placements.begin(), placements.size()), this->layout()));
}

DistributedTensor DistributedTensor::redistribute(std::string_view layout, const RedistributeOptions& options) const {
  value("redistribute");
  return redistribute(parse_target(layout, mesh().shape(), dims(), this->layout()), options);
}

DistributedTensor DistributedTensor::redistribute(std::string_view layout) const {
  return redistribute(layout, RedistributeOptions{});
}

Tensor DistributedTensor::full_tensor() const {
  NoGrad scope(value("full_tensor").mesh.rank_state());
  return redistribute(Layout()).local().contiguous();
}

double DistributedTensor::item() const {
  value("item");
  if (numel(shape()) != 1) fail("[item] {} has {} elements", to_string(*this), numel(shape()));
  if (!layout().is_replicated())
    fail("[item] {} is not Replicate: redistribute it first, or use full_tensor()", to_string(*this));
  if (is_meta()) fail("[item] a meta tensor has no value: {}", to_string(*this));
  return element(local().contiguous(), 0);
}

Tensor& DistributedTensor::local_for_writing() {
  Value& v = value("local_for_writing");
  ++v.version;
  if (!v.local.unique() || !v.local.is_contiguous()) v.local = v.local.clone();
  return v.local;
}

void DistributedTensor::copy_(const DistributedTensor& from) {
  value("copy_"), from.value("copy_");
  if (&spec() != &from.spec())
    fail("[copy_] {} is not {}: redistribute or cast it first", to_string(from), to_string(*this));
  copy(from.local(), local_for_writing());
}

void DistributedTensor::materialize() { materialize(value("materialize").mesh.rank_state().allocator()); }

void DistributedTensor::materialize(const std::shared_ptr<Allocator>& allocator) {
  value("materialize");
  if (!is_meta()) return;
  ++value_->version;
  value_->local = Tensor(allocator, spec().local_dtype, spec().local_shape, allocator->device());
}

std::string to_string(const DistributedTensor& x) {
  return x.defined() ? to_string(TensorSpec(x.spec()), x.mesh().shape()) : "an undefined tensor";
}

std::ostream& operator<<(std::ostream& out, const DistributedTensor& x) {
  out << to_string(x);
  if (!x.defined()) return out;
  return out << "\nrank " << x.mesh().rank() << " at " << to_string(x.spec().box.offset()) << ": " << x.local();
}

}  // namespace dtensor
