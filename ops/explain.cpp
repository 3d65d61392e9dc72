#include "ops/explain.h"

#include <fmt/format.h>

#include "ops/cards.h"

namespace dtensor {
namespace {

// Axes of one rank hold the whole, whatever was asked for.
TensorSpec stripped(const TensorSpec& s, const MeshShape& mesh) {
  return {s.dtype, s.shape, strip_narrow_axes(mesh, s.layout)};
}

Explanation::Move move(const MeshShape& mesh, const TensorSpec& from, const Layout& to, DType reduce_dtype) {
  return {from, to,
          plan_redistribution(mesh, from.shape, from.dtype, from.layout, to, {}, reduced_as(from.dtype, reduce_dtype))};
}

// Writes down which cards run and what is redistributed.
class Recorder : public Observer {
 public:
  Recorder(const DeviceMesh& mesh, Explanation& e, std::span<const DistributedTensor> given)
      : mesh_(mesh), explanation_(e), given_(given), met_(given.size()) {
    for (const DistributedTensor& x : given)
      e.inputs.push_back(x.defined() ? Explanation::Move{x.spec(), x.layout(), {}} : Explanation::Move{});
    mesh.rank_state().add(*this);
  }
  ~Recorder() override { mesh_.rank_state().remove(*this); }
  Recorder(const Recorder&) = delete;

  void on_redistribute(const RedistributeEvent& r) override {
    Explanation::Event event;
    event.inputs.push_back(move(r.from, r.to.layout()));
    event.outputs.push_back(r.to.spec());
    event.reason = reason_;
    explanation_.events.push_back(std::move(event));
    results_.push_back(r.to.id());
    meet(r.from, r.to.layout());
  }

  void on_collective(const CollectiveEvent& c) override {  // comes before on_redistribute of the same tensor
    if (c.group != group_) ++explanation_.launches;
    group_ = c.group;
    reason_ = !c.reason.empty() ? c.reason : mesh_.rank_state().label(Label::Kind::reason);
    if (reason_.empty()) reason_ = mesh_.rank_state().label(Label::Kind::op);
  }

  void on_call(const CallEvent& call) override {
    if (call.op.composite) return;  // what it does was seen already
    Explanation::Event event{call.lasting, call.attributes, {}, {}, {}, {}};
    std::vector<const TensorSpec*> specs;
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const DistributedTensor *given = call.inputs[i], *used = call.used[i];
      specs.push_back(given ? &given->spec() : nullptr);
      if (!given) continue;
      if (given->id() != used->id()) forget(used->id());  // the dispatcher's own: part of this call
      event.inputs.push_back(move(*given, used->layout()));
      meet(*given, used->layout());
    }
    for (const DistributedTensor& out : call.outputs) event.outputs.push_back(out.spec());
    event.ways = ways(call.op, mesh_.shape(), specs, call.attributes, mesh_.rank_state().reduce_dtype);
    explanation_.events.push_back(std::move(event));
    results_.push_back(0);
  }

 private:
  void forget(uint64_t result) {
    for (size_t i = results_.size(); i-- > 0;)
      if (results_[i] == result) {
        explanation_.events.erase(explanation_.events.begin() + long(i));
        results_.erase(results_.begin() + long(i));
        return;
      }
  }
  Explanation::Move move(const DistributedTensor& from, const Layout& to) const {
    return dtensor::move(mesh_.shape(), from.spec(), to, mesh_.rank_state().reduce_dtype);
  }
  void meet(const DistributedTensor& x, const Layout& to) {
    for (size_t i = 0; i < given_.size(); ++i)
      if (!met_[i] && given_[i].defined() && given_[i].id() == x.id()) {
        explanation_.inputs[i] = move(x, to);
        met_[i] = true;
      }
  }

  const DeviceMesh& mesh_;
  Explanation& explanation_;
  std::span<const DistributedTensor> given_;
  std::vector<bool> met_;          // inputs that something used
  uint64_t group_ = 0;             // of the last collective
  std::string reason_;             // of the last collective
  std::vector<uint64_t> results_;  // of events that are redistributions, the tensor they made
};

}  // namespace

std::string Ways::why() const {
  const Choice& best = list[0].choice;
  if (list.size() == 1) return "the only way";
  size_t bytes = 0, moves = 0;
  for (const Way& w : list) {
    bytes += w.choice.bytes == best.bytes;
    moves += w.choice.bytes == best.bytes && w.choice.moves == best.moves;
  }
  std::string ways = all() ? fmt::format("{} ways", list.size()) : fmt::format("the {} best ways", list.size());
  if (bytes == 1) return fmt::format("the fewest of {}", ways);
  if (moves == 1) return fmt::format("as few as {} of {}, with the fewest redistributions", bytes, ways);
  return fmt::format("as few as {} of {}, the first in the rule's order", bytes, ways);
}

Ways ways(const Op& op, const MeshShape& mesh, std::span<const TensorSpec* const> inputs, const Attributes& attributes,
          DType reduce_dtype) {
  check(!op.composite, "[explain] {} is a composite of several ops, not one card", op.name);
  std::vector<TensorSpec> list;
  std::vector<const Shape*> shapes;
  for (const TensorSpec* in : inputs) {
    list.push_back(in ? stripped(*in, mesh) : TensorSpec{});
    shapes.push_back(in ? &in->shape : nullptr);
  }
  std::vector<const TensorSpec*> specs;
  for (size_t i = 0; i < inputs.size(); ++i) specs.push_back(inputs[i] ? &list[i] : nullptr);
  auto first = std::find_if(specs.begin(), specs.end(), [](const TensorSpec* s) { return s != nullptr; });
  check(first != specs.end(), "[explain] {}: all operands are absent", op.name);
  BoundRule rule = bind_rule(op, shapes, attributes, (*first)->dtype);
  Ways w;
  for (Choice& c : best_choices({rule, mesh, specs, {}, {}, reduce_dtype}, Ways::most)) {
    Ways::Way way{std::move(c), {}};
    for (size_t i = 0; i < specs.size(); ++i)
      way.plans.push_back(specs[i] ? move(mesh, *specs[i], way.choice.inputs[i], reduce_dtype).plan : Plan{});
    w.list.push_back(std::move(way));
  }
  for (size_t o = 0; o < rule.outputs().size(); ++o)
    w.outputs.push_back(
        {op.types(op.name, specs, attributes, int(o)), rule.outputs()[o].shape, w.list[0].choice.outputs[o]});
  return w;
}

int64_t Explanation::Event::bytes() const {
  int64_t n = 0;
  for (const Move& m : inputs) n += m.plan.bytes();
  return n;
}

int64_t Explanation::bytes() const {
  int64_t n = 0;
  for (const Event& e : events) n += e.bytes();
  return n;
}

int Explanation::collectives() const {
  int n = 0;
  for (const Event& e : events)
    for (const Move& m : e.inputs) n += m.plan.collectives();
  return n;
}

Explanation explain(std::string_view function, const MeshShape& mesh, std::span<const TensorSpec* const> inputs,
                    const NamedValues& values) {
  auto rank = Rank::recorded(mesh.world());
  DeviceMesh device_mesh(*rank, mesh);
  std::vector<DistributedTensor> given;
  for (const TensorSpec* in : inputs)
    given.push_back(in ? DistributedTensor::empty(device_mesh, *in) : DistributedTensor());
  std::vector<const DistributedTensor*> operands;
  for (const DistributedTensor& x : given) operands.push_back(x.defined() ? &x : nullptr);
  Explanation e;
  Recorder recorder(device_mesh, e, given);
  for (const DistributedTensor& out : ops::call_function(function, operands, values)) e.outputs.push_back(out.spec());
  return e;
}

}  // namespace dtensor
