// DistributedTensor: one logical tensor, of which each rank of a mesh holds a part.
#pragma once

#include <iosfwd>
#include <memory>

#include "dtensor/device_mesh.h"
#include "dtensor/local/tensor.h"

namespace dtensor {

struct RedistributeOptions;

[[noreturn]] void fail_undefined(std::string_view who, size_t operand);

// A handle to an immutable value with an id that is never used again. Copies share it. Only optimizers and gradient
// accumulation write in place, by copy_ or local_for_writing, which bump the version that records check.
//
// Its part is on the rank's device, or where that is apart from the host also in Rank::host_allocator()'s memory, as
// offloaded parameters are. redistribute() brings it to the device, whatever the layout; ops of values in host memory
// run there, on the CPU, and leave their results there.
class DistributedTensor {
 public:
  DistributedTensor() = default;  // undefined: all but defined() and handing it on is an error

  // The logical tensor of `shape` whose part on this rank is `local`, of its type; contributions of bf16 to a sum are
  // kept in f32. Nothing is communicated, nothing is checked on
  // other ranks. Errors: a local shape that is not this rank's part; a part that is neither on the rank's device nor on
  // meta.
  static DistributedTensor from_local(const Tensor& local, const DeviceMesh& mesh, const Layout& layout,
                                      const Shape& shape);
  // This rank's part of `whole`, which every rank has. Nothing is communicated. On Partial axes coordinate 0 keeps the
  // value and the others hold the identity of the reduction; of min, max and avg all keep it.
  static DistributedTensor distribute(const Tensor& whole, const DeviceMesh& mesh, const Layout& layout);
  static DistributedTensor distribute(const Tensor& whole, const DeviceMesh& mesh,
                                      std::initializer_list<Placement> placements);
  static DistributedTensor distribute(const Tensor& whole, const DeviceMesh& mesh, std::string_view layout);
  // Contents undefined, on the rank's device.
  static DistributedTensor empty(const DeviceMesh& mesh, const TensorSpec& spec);
  static DistributedTensor empty(const DeviceMesh& mesh, SpecHandle spec, Tensor local);

  bool defined() const { return value_ != nullptr; }
  const DeviceMesh& mesh() const { return value("mesh").mesh; }
  const LocalSpec& spec() const { return *value("spec").spec; }
  const Shape& shape() const { return value("shape").spec->shape; }
  int dims() const { return value("dims").spec->shape.dims(); }
  int64_t size(int64_t dim) const { return value("size").spec->shape[normalize_dim("size", dim, dims())]; }
  DType dtype() const { return value("dtype").spec->dtype; }
  const Layout& layout() const { return value("layout").spec->layout; }
  bool is_meta() const { return value("is_meta").local.device() == Device::meta; }
  // In host memory, apart from the rank's device; so never on the CPU.
  bool is_on_host() const;

  // This rank's part; read-only. Of dtype(), but for contributions of bf16 to a sum, which are f32 (part_dtype): the
  // sum is rounded once, on any mesh.
  const Tensor& local() const { return value("local").local; }
  // The whole value on every rank: redistributes to Replicate.
  Tensor full_tensor() const;
  // The value of a tensor with one element, which must be the same on all ranks (Replicate) to be read without
  // communication. Errors: more elements, another layout, meta.
  double item() const;

  // The same logical value in another layout (law 1), on the device. A handle to the same value where it is there in
  // that layout.
  DistributedTensor redistribute(const Layout& layout) const;
  DistributedTensor redistribute(const Layout& layout, const RedistributeOptions& options) const;
  // One placement per mesh axis, in mesh order. Axes behind the last one stay as they are.
  DistributedTensor redistribute(std::initializer_list<Placement> placements) const;
  // By text. Axes that are not named stay as they are, so that x.redistribute("tp=Replicate") gathers over tp alone;
  // "*" names the rest: x.redistribute("tp=Shard(0) *=Replicate").
  DistributedTensor redistribute(std::string_view layout) const;
  DistributedTensor redistribute(std::string_view layout, const RedistributeOptions& options) const;

  // In place: this value becomes `from`'s, of the same specification. The storage is replaced where others share it.
  void copy_(const DistributedTensor& from);
  // This rank's part for writing in place; bumps the version. Replaces the storage, contents copied, where others
  // share it: a collective may still read it, or a view shows it.
  Tensor& local_for_writing();
  // A meta tensor gets bytes, contents undefined, on the rank's device, or by an allocator of the rank.
  void materialize();
  void materialize(const std::shared_ptr<Allocator>& allocator);

  bool unique() const { return value_.use_count() == 1; }  // no other handle to this value
  uint64_t id() const { return value("id").id; }
  uint32_t version() const { return value("version").version; }

 private:
  struct Value {
    DeviceMesh mesh;
    SpecHandle spec;  // goes before its mesh
    Tensor local;
    uint64_t id;
    uint32_t version = 0;
  };
  Value& value(const char* who) const {
    if (!value_) fail_undefined(who);
    return *value_;
  }
  [[noreturn]] static void fail_undefined(const char* who);
  std::shared_ptr<Value> value_;
};

// An error of the function `who` where its operand number `operand` is undefined.
inline void check_defined(std::string_view who, const DistributedTensor& x, size_t operand = 0) {
  if (!x.defined()) [[unlikely]]
    fail_undefined(who, operand);
}

// "f32[8,16] dp=Shard(0) tp=Replicate"
std::string to_string(const DistributedTensor& x);
// The same, this rank, where its part is, and the part. Never communicates; full_tensor() gives the value.
std::ostream& operator<<(std::ostream& out, const DistributedTensor& x);

}  // namespace dtensor

template <>
struct fmt::formatter<dtensor::DistributedTensor> : dtensor::Formatter<dtensor::DistributedTensor> {};
