// Which op last brought a tensor to a placement that nobody asked for: what a claim of a plan that does not hold names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dtensor/device_mesh.h"
#include "dtensor/observer.h"

namespace dtensor {
struct Op;
}

namespace dtensor::nn {

// Watches a rank's forward passes. Of moves along one axis of a mesh to one placement it keeps the last, so it does not
// grow.
class ImplicitMoves : public Observer, public std::enable_shared_from_this<ImplicitMoves> {
 public:
  // The rank's, which all plans on it share; made where there is none.
  static std::shared_ptr<ImplicitMoves> of(Rank& rank);
  explicit ImplicitMoves(Rank& rank);
  ~ImplicitMoves() override;
  ImplicitMoves(const ImplicitMoves&) = delete;

  // "mul in model.layers.0.mlp, of f32[2,8,32] tp=Replicate"; "" where there was none.
  std::string last(const DeviceMesh& mesh, int axis, Placement to) const;

  void on_call(const CallEvent&) override;
  bool sees_every_step() const override { return false; }

 private:
  struct Move {
    DeviceMesh mesh;
    int axis;
    Placement to;
    std::shared_ptr<const Op> op = nullptr;
    std::string module = {};
    TensorSpec from = {};
  };
  Move& at(const DeviceMesh& mesh, int axis, Placement to);

  std::shared_ptr<Rank> rank_;
  std::vector<Move> moves_;
};

}  // namespace dtensor::nn
