// cuDNN's backend API with owners: graphs of operations, and plans that run them. Source: NVIDIA, "cuDNN Backend API".
//
// Errors: every failed call is an Error that names the call, the descriptor and what cuDNN says.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/cuda/cudnn_api.h"

namespace dtensor::cuda::cudnn {

void check_call(const Api&, Status status, const std::string& call);

class Descriptor {
 public:
  Descriptor(const Api& api, DescriptorType type);  // the table outlives it
  Descriptor(Descriptor&& other) noexcept
      : api_(other.api_), handle_(std::exchange(other.handle_, nullptr)), type_(other.type_) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(api_, other.api_), std::swap(handle_, other.handle_), std::swap(type_, other.type_);
    return *this;
  }
  ~Descriptor();

  BackendDescriptor handle() const { return handle_; }
  Descriptor& set(AttributeName name, AttributeType type, int64_t count, const void* values);
  template <class T>
  Descriptor& set(AttributeName name, AttributeType type, const T& value) {
    return set(name, type, 1, &value);
  }
  Descriptor& set(AttributeName name, BackendDescriptor descriptor) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &descriptor);
  }
  Descriptor& finalize();

 private:
  const Api* api_;
  BackendDescriptor handle_ = nullptr;
  DescriptorType type_;
};

// A handle, or, for checks without a GPU, a device that is described.
class Target {
 public:
  Target(const Api& api, Handle handle) : api_(&api), handle_(handle) {}
  // What CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION gives of a device.
  Target(const Api& api, const std::string& device_properties);

  const Api& api() const { return *api_; }
  bool is_described() const { return !described_.empty(); }
  // Sets the one of the two attributes that applies.
  void set_on(Descriptor& d, AttributeName handle, AttributeName properties) const;

 private:
  const Api* api_;
  Handle handle_ = nullptr;
  std::vector<Descriptor> described_;
};

using Dims = std::array<int64_t, 4>;
using Node = BackendDescriptor;  // a tensor of a graph, which owns it

// What is known of a tensor before it is made.
struct TensorOptions {
  DataType type = CUDNN_DATA_FLOAT;
  Dims dims = {1, 1, 1, 1}, strides = {1, 1, 1, 1};
  // A tensor, i64 [dims[0] + 1,1,1,1], of where each entry of dimension 0 begins, in elements, in place of its stride.
  Node ragged = nullptr;
  int64_t alignment = 16;  // in bytes, of what is given when the plan is run
};

// A graph of operations. Those without an id are virtual: cuDNN keeps them out of memory.
class OperationGraph {
 public:
  explicit OperationGraph(const Api& api) : api_(&api) {}
  Node tensor(int64_t id, const TensorOptions& options);
  Node scalar(int64_t id, DataType type);  // read from host memory when the plan is run
  Node virtual_tensor(const TensorOptions& options);

  // Lengths by batch entry [b,1,1,1], i32: only so many of the rows of a, columns of b, or elements summed over count.
  struct Lengths {
    Node rows = nullptr, columns = nullptr, inner = nullptr;
    bool pads = false;  // what lies beyond is 0
  };
  void matmul(Node a, Node b, Node to, const Lengths& lengths);
  // to = mode(x, b) or, for a selection, t ? x : b. Precision and type of the result go together.
  void pointwise(PointwiseMode mode, DataType precision, Node x, Node to, Node b = nullptr, Node t = nullptr,
                 int64_t axis = -1);
  void reduce(ReduceTensorOp mode, Node x, Node to);  // over the dimensions that are 1 in `to`
  void reshape(Node x, Node to);

  // The graph's own descriptor; nothing may be added then.
  Node finalize(const Target& target);

 private:
  Node make_tensor(int64_t id, const TensorOptions& options, bool is_virtual, bool by_value);
  Descriptor& add(DescriptorType type) { return descriptors_.emplace_back(*api_, type); }

  const Api* api_;
  std::deque<Descriptor> descriptors_;
  std::vector<BackendDescriptor> operations_;
  int64_t next_virtual_ = 1000;
};

// A graph that can be run by an engine that accepts it. Engines that say that they are not deterministic are left out,
// unless they are allowed.
class Plan {
 public:
  // By the first engine of those that heuristics (mode A) propose, or by the proposal of this number. Takes 0.5 to 1 s.
  // On a described device the last step, compiling, needs a driver, so that success there means that cuDNN's own checks
  // passed, and the plan cannot be run. Errors: no engine takes the graph.
  static Plan make(OperationGraph graph, const Target& target, bool deterministic,
                   std::optional<int64_t> proposal = {});
  // By every engine that is proposed and accepts it, in their order. Errors: none does.
  static std::vector<Plan> make_all(OperationGraph graph, const Target& target, bool deterministic);

  int64_t workspace_bytes() const { return workspace_bytes_; }
  int64_t engine() const { return engine_; }      // its number
  int64_t proposal() const { return proposal_; }  // of the heuristics, from 0 on
  // Values by the ids of tensors (device memory, as aligned as they say) and scalars (host memory).
  void run(Handle handle, std::span<const std::pair<int64_t, void*>> values, void* workspace) const;

 private:
  Plan(std::shared_ptr<OperationGraph> graph, const Api& api, int64_t proposal)
      : api_(&api), graph_(std::move(graph)), proposal_(proposal) {}
  // What is wrong with the engine's configuration, or "" where the plan is complete.
  std::string complete(Descriptor config, const Target& target, bool deterministic);
  template <class Wanted>
  static std::vector<Plan> make_some(OperationGraph graph, const Target& target, bool deterministic, Wanted is_wanted);

  const Api* api_;
  std::shared_ptr<OperationGraph> graph_;
  std::vector<Descriptor> config_, plan_;  // one each; none on a described device
  int64_t workspace_bytes_ = 0, engine_ = -1, proposal_;
};

}  // namespace dtensor::cuda::cudnn
