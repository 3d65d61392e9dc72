#include "nn/foresight/timeline.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <set>

#include "ops/layer/attention.h"
#include "placement/notation.h"

namespace dtensor::nn {
namespace {

using Kind = Activity::Kind;

constexpr std::string_view copy_to_device = "copy to the device", copy_to_host = "copy to the host";

Kind kind_of(std::string_view op) {
  static const std::set<std::string_view> products = {"matmul", "linear", "linear_gelu", "linear_weight_gradient",
                                                      "einsum"};
  if (products.contains(op)) return Kind::product;
  return op == "attention" || op == "attention_backward" ? Kind::attention : Kind::memory_bound;
}

// Multiply-adds: the ranges of all factors, or their global sizes.
std::pair<double, double> multiply_adds(const CallEvent& e) {
  double mine = 1, all = 1;
  for (const Context::FactorRange& f : e.factors) mine *= double(f.range.size()), all *= double(f.size);
  return {mine, all};
}

// The least of the three sizes of a product: of the factors that both operands have, and those that either has alone.
// Operands and output are m*k, k*n and m*n large.
int64_t least_size(const CallEvent& e, double all) {
  double a = double(e.used[0]->local().numel()), b = double(e.used[1]->local().numel()),
         c = double(e.outputs[0].local().numel());
  if (a == 0 || b == 0 || c == 0) return 1;
  return int64_t(std::llround(std::max(1.0, std::min({all / a, all / b, all / c}))));
}

int64_t bytes_of(const CallEvent& e) {
  int64_t n = 0;
  if (e.op.view) return 0;
  for (const DistributedTensor* x : e.used)
    if (x) n += x->local().bytes();
  for (const DistributedTensor& x : e.outputs) n += x.local().bytes() * (e.accumulated ? 2 : 1);
  if (e.op.name == "embedding") n = 2 * e.outputs[0].local().bytes();  // reads the rows of its tokens alone
  return n;
}

bool is_backward(const CallEvent& e) { return e.op.name == "attention_backward"; }

// The share of the scores that attention's mask leaves.
double unmasked(const CallEvent& e) {
  bool causal =
      is_backward(e) ? e.attributes.as<ops::AttentionBackward>().causal : e.attributes.as<ops::Attention>().causal;
  return causal ? 0.5 : 1;
}

// Of the multiply-adds that a rule counts, attention does two products forward and five backward.
double attention_operations(const CallEvent& e, double multiply_adds) {
  return multiply_adds * (is_backward(e) ? 10 : 4) * unmasked(e);
}

std::string key_of(DType dtype, const Shape& shape, const Step& step, const MeshShape& mesh) {
  return fmt::format("{}{} {} > {}", name(dtype), shape, to_string(step.from, mesh), to_string(step.to, mesh));
}

}  // namespace

int Timeline::module_now() {
  std::string_view label = rank_.label(Label::Kind::module);
  auto it = module_index_.find(label);
  if (it != module_index_.end()) return it->second;
  modules_.emplace_back(label);
  return module_index_[std::string(label)] = int(modules_.size()) - 1;
}

namespace {

template <class F>
int64_t bytes_of_update_where(Optimizer& optimizer, F counts) {
  int64_t bytes = 0;
  for (const Optimizer::State& s : optimizer.state())
    if (counts(s.tensor)) bytes += 2 * s.tensor.local().bytes();
  for (const Parameter* p : optimizer.parameters()) {
    if (!counts(p->stored())) continue;
    bytes += 3 * p->stored().local().bytes();
    if (p->is_cast()) bytes += p->value().local().bytes();
  }
  return bytes;
}

}  // namespace

int64_t bytes_of_update(Optimizer& optimizer) {
  return bytes_of_update_where(optimizer, [](const DistributedTensor&) { return true; });
}
int64_t bytes_of_host_update(Optimizer& optimizer) {
  return bytes_of_update_where(optimizer, [](const DistributedTensor& x) { return x.is_on_host(); });
}

void Timeline::clear() { activities_.clear(), under_way_.clear(), to_device_.clear(); }

void Timeline::add_update(int64_t bytes, int64_t on_host) {
  Activity update{Kind::memory_bound, Phase::optimizer, "update", 0};
  if (bytes > on_host) activities_.push_back(update), activities_.back().bytes = bytes - on_host;
  if (on_host > 0) activities_.push_back(update), activities_.back().bytes = on_host, activities_.back().on_host = true;
}

void Timeline::on_call(const CallEvent& e) {
  if (e.op.composite) return;  // its ops are calls of their own
  Activity a{kind_of(e.op.name), rank_.phase, e.op.name, module_now(), e.outputs[0].dtype()};
  a.bytes = bytes_of(e), a.on_host = e.outputs[0].is_on_host();
  if (a.kind != Kind::memory_bound) {
    auto [mine, all] = multiply_adds(e);
    a.dtype = e.used[0]->dtype();
    bool product = a.kind == Kind::product;
    a.operations = product ? 2 * mine : attention_operations(e, mine);
    a.global_operations = product ? 2 * all : attention_operations(e, all);
    if (product)
      a.least = least_size(e, mine);
    else
      a.scores = mine * unmasked(e) / double(std::max<int64_t>(1, e.used[0]->shape()[3]));
  } else if (e.op.view) {
    return;  // no kernel runs
  }
  activities_.push_back(a);
}

void Timeline::on_collective(const CollectiveEvent& e) {
  Activity a{Kind::collective, rank_.phase, collective_name(e.kind), module_now(), e.dtype};
  a.bytes = e.bytes, a.axes = e.axes, a.group = e.group;
  activities_.push_back(a);
  if (e.step) under_way_[key_of(e.tensor_dtype, e.shape, *e.step, e.mesh.shape())].push_back(e.group);
}

// Its launches are numbered apart from those of collectives.
void Timeline::on_host_copy(const DistributedTensor& from) {
  Activity a{Kind::collective, rank_.phase, from.is_on_host() ? copy_to_device : copy_to_host, module_now(),
             from.dtype()};
  a.bytes = from.local().bytes(), a.group = ++copies_ | uint64_t(1) << 63;
  activities_.push_back(a);
  if (from.is_on_host()) to_device_[from.id()].push_back(a.group);
}

void Timeline::on_redistribute(const RedistributeEvent& e) {
  const MeshShape& mesh = e.from.mesh().shape();
  if (auto copies = to_device_.find(e.from.id()); copies != to_device_.end() && !copies->second.empty()) {
    Activity a{Kind::wait, rank_.phase, copy_to_device, module_now(), e.from.dtype()};
    a.group = copies->second.front();
    copies->second.pop_front();
    activities_.push_back(a);
  }
  for (const Step& s : e.plan.steps) {
    if (is_local(s.kind)) continue;
    auto& list = under_way_[key_of(e.from.dtype(), e.from.shape(), s, mesh)];
    if (list.empty()) continue;
    Activity a{Kind::wait, rank_.phase, collective_name(collective_kind(s.kind)), module_now(), e.from.dtype()};
    a.group = list.front(), a.axes = s.axes;
    list.pop_front();
    activities_.push_back(a);
  }
}

double Timeline::operations() const {
  double sum = 0;
  for (const Activity& a : activities_) sum += a.operations;
  return sum;
}

double Timeline::model_operations() const {
  double sum = 0;
  for (const Activity& a : activities_)
    if (a.phase == Phase::forward) sum += a.global_operations;
  return 3 * sum;
}

StepTime Timeline::time(const Hardware& h, const MeshShape& mesh, bool captured, std::vector<Span>* spans) const {
  StepTime t;
  double device = 0, host = 0;      // from when on each is free
  std::map<AxisSet, double> links;  // each communicator has a stream of its own
  double slow = h.slowdown(mesh.world());
  std::map<uint64_t, double> ends;    // of launches
  double to_device = 0, to_host = 0;  // until when copies go on; each way has a stream of its own
  double arriving = 0;                // when the copies have come that the launch begun next reads
  std::map<AxisSet, Peers> peers;
  for (size_t i = 0; i < activities_.size(); ++i) {
    const Activity& a = activities_[i];
    bool micro_batch_begins = i > 0 && a.phase == Phase::forward && activities_[i - 1].phase != Phase::forward;
    if (h.host_waits && micro_batch_begins) host = std::max(host, device);
    if (a.phase != Phase::backward || a.on_host) host = std::max(host, std::exchange(to_host, 0));  // it reads them
    if (!captured && a.kind != Kind::wait) host += h.host_seconds;
    if (a.on_host) host = std::max(host, device) + h.on_host(a.name, double(a.bytes));
    if (host > device) t.host += host - device, device = host;  // nothing was given to the device meanwhile
    if (a.on_host) continue;
    if (a.kind == Kind::collective && !a.axes) {
      double& stream = a.name == copy_to_host ? to_host : to_device;
      double begin = std::max(stream, device);
      stream = ends[a.group] = begin + h.copy(double(a.bytes));
      if (a.name == copy_to_device) arriving = stream;
      t.communication += stream - begin;
      if (spans) spans->push_back({i, begin, stream});
      continue;
    }
    if (a.kind != Kind::collective) arriving = 0;
    if (a.kind == Kind::wait) {
      double end = ends[a.group];
      if (end > device) t.exposed_communication += end - device, device = end;
      continue;
    }
    if (a.kind == Kind::collective) {
      auto [it, is_new] = peers.try_emplace(a.axes);
      if (is_new) it->second = h.peers(mesh, a.axes);
      // Tensors of one launch wait for the links once.
      bool first = !ends.contains(a.group);
      double seconds = slow * (h.collective(a.bytes, it->second) - (first ? 0 : h.collective(0, it->second)));
      if (first) seconds += h.wait(mesh.world());
      double& link = links[a.axes];
      double begin = first ? std::max({link, device, arriving}) : link;
      link = ends[a.group] = begin + seconds;
      t.communication += seconds;
      if (spans) spans->push_back({i, begin, link});
      if (!h.overlaps) t.exposed_communication += link - device, device = link;
      continue;
    }
    double seconds = 0;
    if (a.kind == Kind::product) seconds = h.product(a.name, a.dtype, a.operations, a.least);
    if (a.kind == Kind::attention)
      seconds = h.attention(a.name, a.dtype, a.operations, a.scores, a.name == "attention_backward");
    if (a.kind == Kind::memory_bound) seconds = h.memory_bound(a.name, double(a.bytes));
    seconds *= slow;
    (a.kind == Kind::memory_bound ? t.memory_bound : t.compute) += seconds;
    if (spans) spans->push_back({i, device, device + seconds});
    device += seconds;
  }
  t.step = device;
  return t;
}

}  // namespace dtensor::nn
