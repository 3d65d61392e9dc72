#include "nn/parallel/implicit_moves.h"

#include <fmt/format.h>

#include <algorithm>

#include "ops/core/call.h"

namespace dtensor::nn {
namespace {

// Whether another operand is there already: then the move follows it, and is no cause.
bool follows(const CallEvent& e, size_t moved, int axis, Placement to) {
  for (size_t i = 0; i < e.used.size(); ++i)
    if (i != moved && e.used[i] && e.used[i] == e.inputs[i] && e.used[i]->layout()[axis] == to) return true;
  return false;
}

}  // namespace

std::shared_ptr<ImplicitMoves> ImplicitMoves::of(Rank& rank) {
  for (Observer* o : rank.observers())
    if (auto* moves = dynamic_cast<ImplicitMoves*>(o)) return moves->shared_from_this();
  return std::make_shared<ImplicitMoves>(rank);
}

ImplicitMoves::ImplicitMoves(Rank& rank) : rank_(rank.shared_from_this()) { rank_->add(*this); }
ImplicitMoves::~ImplicitMoves() { rank_->remove(*this); }

std::string ImplicitMoves::last(const DeviceMesh& mesh, int axis, Placement to) const {
  for (const Move& m : moves_)
    if (m.mesh == mesh && m.axis == axis && m.to == to)
      return fmt::format("{} in {}, of {}", m.op->name, m.module.empty() ? "the root module" : m.module,
                         to_string(m.from, mesh.shape()));
  return "";
}

void ImplicitMoves::on_call(const CallEvent& e) {
  if (rank_->phase == Phase::backward || rank_->phase == Phase::optimizer) return;
  for (size_t i = 0; i < e.used.size(); ++i) {
    if (e.used[i] == e.inputs[i]) continue;
    const DistributedTensor& x = *e.inputs[i];
    const Layout &from = x.layout(), &to = e.used[i]->layout();
    for (int axis = 0; axis < x.mesh().shape().axes(); ++axis) {
      if (to[axis] == from[axis] || follows(e, i, axis, to[axis])) continue;
      Move& m = at(x.mesh(), axis, to[axis]);
      m.op = e.lasting, m.module = rank_->label(Label::Kind::module), m.from = x.spec();
    }
  }
}

ImplicitMoves::Move& ImplicitMoves::at(const DeviceMesh& mesh, int axis, Placement to) {
  for (Move& m : moves_)
    if (m.mesh == mesh && m.axis == axis && m.to == to) return m;
  return moves_.emplace_back(Move{mesh, axis, to});
}

}  // namespace dtensor::nn
