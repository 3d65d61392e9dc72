#include "ops/cuda/cudnn_plan.h"

#include <algorithm>

#include "placement/error.h"

namespace dtensor::cuda::cudnn {
namespace {

std::string last_error(const Api& api) {
  char text[2048] = "";
  api.GetLastErrorString(text, sizeof text);
  return text;
}

// The attribute's value, a descriptor: `into` was made for it.
void get_descriptor(const Api& api, const Descriptor& from, AttributeName name, Descriptor& into) {
  int64_t count = 0;
  BackendDescriptor handle = into.handle();
  check_call(api, api.BackendGetAttribute(from.handle(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &handle),
             "cudnnBackendGetAttribute");
}
int64_t get_int64(const Api& api, const Descriptor& from, AttributeName name) {
  int64_t count = 0, value = 0;
  check_call(api, api.BackendGetAttribute(from.handle(), name, CUDNN_TYPE_INT64, 1, &count, &value),
             "cudnnBackendGetAttribute");
  return value;
}

// The heuristics' engine configurations, the best first.
std::vector<Descriptor> engine_configs(Node graph, const Target& target) {
  const Api& api = target.api();
  Descriptor heuristics(api, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  if (target.is_described()) target.set_on(heuristics, {}, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
  heuristics.finalize();
  auto results = [&](int64_t room, void* into) {
    int64_t count = 0;
    check_call(api,
               api.BackendGetAttribute(heuristics.handle(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, room, &count, into),
               "cudnnBackendGetAttribute of ENGINEHEUR_RESULTS");
    return count;
  };
  std::vector<Descriptor> configs;
  std::vector<BackendDescriptor> handles;
  for (int64_t n = results(0, nullptr); n > 0; --n)
    handles.push_back(configs.emplace_back(api, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).handle());
  int64_t count = handles.empty() ? 0 : results(int64_t(handles.size()), handles.data());
  while (int64_t(configs.size()) > count) configs.pop_back();
  return configs;
}

bool says_nondeterministic(const Api& api, const Descriptor& engine) {
  NumericalNote notes[most_numerical_notes];
  int64_t count = 0;
  check_call(api,
             api.BackendGetAttribute(engine.handle(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                     most_numerical_notes, &count, notes),
             "cudnnBackendGetAttribute of ENGINE_NUMERICAL_NOTE");
  return std::find(notes, notes + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) != notes + count;
}

}  // namespace

void check_call(const Api& api, Status status, const std::string& call) {
  if (status != CUDNN_STATUS_SUCCESS) fail("[cudnn] {}: {}: {}", call, api.GetErrorString(status), last_error(api));
}

// --- Descriptors.

Descriptor::Descriptor(const Api& api, DescriptorType type) : api_(&api), type_(type) {
  check_call(api, api.BackendCreateDescriptor(type, &handle_), "cudnnBackendCreateDescriptor");
}
Descriptor::~Descriptor() {
  if (handle_) api_->BackendDestroyDescriptor(handle_);
}
Descriptor& Descriptor::set(AttributeName name, AttributeType type, int64_t count, const void* values) {
  Status status = api_->BackendSetAttribute(handle_, name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS)
    check_call(*api_, status, fmt::format("cudnnBackendSetAttribute({}) of descriptor {}", int(name), int(type_)));
  return *this;
}
Descriptor& Descriptor::finalize() {
  Status status = api_->BackendFinalize(handle_);
  if (status != CUDNN_STATUS_SUCCESS)
    check_call(*api_, status, fmt::format("cudnnBackendFinalize of descriptor {}", int(type_)));
  return *this;
}

Target::Target(const Api& api, const std::string& device_properties) : api_(&api) {
  Descriptor& d = described_.emplace_back(api, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  d.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, int64_t(device_properties.size()),
        device_properties.data());
  d.finalize();
}
void Target::set_on(Descriptor& d, AttributeName handle, AttributeName properties) const {
  if (is_described())
    d.set(properties, described_[0].handle());
  else
    d.set(handle, CUDNN_TYPE_HANDLE, handle_);
}

// --- Graphs.

Node OperationGraph::make_tensor(int64_t id, const TensorOptions& o, bool is_virtual, bool by_value) {
  Descriptor& d = add(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id)
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, o.type)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, o.alignment)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, o.dims.data())
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, o.strides.data())
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual)
      .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value);
  if (o.ragged) d.set(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, o.ragged);
  return d.finalize().handle();
}
Node OperationGraph::tensor(int64_t id, const TensorOptions& o) { return make_tensor(id, o, false, false); }
Node OperationGraph::scalar(int64_t id, DataType type) { return make_tensor(id, {.type = type}, false, true); }
Node OperationGraph::virtual_tensor(const TensorOptions& o) { return make_tensor(next_virtual_++, o, true, false); }

void OperationGraph::matmul(Node a, Node b, Node to, const Lengths& lengths) {
  Descriptor& how = add(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  if (lengths.pads) how.set(CUDNN_ATTR_MATMUL_PADDING_VALUE, CUDNN_TYPE_DOUBLE, 0.0);
  how.finalize();
  Descriptor& op = add(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how.handle());
  op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a).set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, to);
  if (lengths.rows) op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, lengths.rows);
  if (lengths.columns) op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, lengths.columns);
  if (lengths.inner) op.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, lengths.inner);
  operations_.push_back(op.finalize().handle());
}

void OperationGraph::pointwise(PointwiseMode mode, DataType precision, Node x, Node to, Node b, Node t, int64_t axis) {
  Descriptor& how = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode)
      .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, precision);
  if (axis >= 0) how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  how.finalize();
  Descriptor& op = add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how.handle());
  op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x).set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, to);
  if (b) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
  if (t) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
  operations_.push_back(op.finalize().handle());
}

void OperationGraph::reduce(ReduceTensorOp mode, Node x, Node to) {
  Descriptor& how = add(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, mode)
      .set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .finalize();
  Descriptor& op = add(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how.handle());
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x).set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, to);
  operations_.push_back(op.finalize().handle());
}

void OperationGraph::reshape(Node x, Node to) {
  Descriptor& op = add(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x).set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, to);
  operations_.push_back(op.finalize().handle());
}

Node OperationGraph::finalize(const Target& target) {
  Descriptor& d = add(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  d.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, int64_t(operations_.size()), operations_.data());
  if (!target.is_described()) target.set_on(d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, {});
  return d.finalize().handle();
}

// --- Plans.

std::string Plan::complete(Descriptor config, const Target& target, bool deterministic) {
  Descriptor engine(*api_, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  get_descriptor(*api_, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  engine_ = get_int64(*api_, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
  if (deterministic && says_nondeterministic(*api_, engine))
    return fmt::format("engine {} is not deterministic", engine_);
  Descriptor plan(*api_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config.handle());
  target.set_on(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
  Status status = api_->BackendFinalize(plan.handle());
  // What is refused fails before the driver is called.
  if (target.is_described() && status == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER) return "";
  if (status != CUDNN_STATUS_SUCCESS)
    return fmt::format("engine {}: {}: {}", engine_, api_->GetErrorString(status), last_error(*api_));
  workspace_bytes_ = get_int64(*api_, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
  config_.push_back(std::move(config));
  plan_.push_back(std::move(plan));
  return "";
}

// Of the proposals that are wanted, by their number and how many accept so far.
template <class Wanted>
std::vector<Plan> Plan::make_some(OperationGraph graph, const Target& target, bool deterministic, Wanted is_wanted) {
  auto shared = std::make_shared<OperationGraph>(std::move(graph));
  std::vector<Descriptor> configs = engine_configs(shared->finalize(target), target);
  std::vector<Plan> plans;
  std::string refusals;
  for (size_t i = 0; i < configs.size(); ++i) {
    if (!is_wanted(int64_t(i), plans.size())) continue;
    Plan plan(shared, target.api(), int64_t(i));
    if (std::string why = plan.complete(std::move(configs[i]), target, deterministic); why.empty())
      plans.push_back(std::move(plan));
    else
      refusals += "; " + why;
  }
  check(!plans.empty(), "[cudnn] no engine takes this graph{}", refusals);
  return plans;
}

Plan Plan::make(OperationGraph graph, const Target& target, bool deterministic, std::optional<int64_t> proposal) {
  return std::move(make_some(std::move(graph), target, deterministic, [&](int64_t i, size_t accepted) {
    return accepted == 0 && (!proposal || i == *proposal);
  })[0]);
}
std::vector<Plan> Plan::make_all(OperationGraph graph, const Target& target, bool deterministic) {
  return make_some(std::move(graph), target, deterministic, [](int64_t, size_t) { return true; });
}

void Plan::run(Handle handle, std::span<const std::pair<int64_t, void*>> values, void* workspace) const {
  std::vector<int64_t> ids;
  std::vector<void*> pointers;
  for (auto [id, pointer] : values) ids.push_back(id), pointers.push_back(pointer);
  Descriptor pack(*api_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, int64_t(ids.size()), ids.data())
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, int64_t(pointers.size()), pointers.data())
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace)
      .finalize();
  check_call(*api_, api_->BackendExecute(handle, plan_.at(0).handle(), pack.handle()), "cudnnBackendExecute");
}

}  // namespace dtensor::cuda::cudnn
