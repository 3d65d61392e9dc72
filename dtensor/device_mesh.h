// DeviceMesh: the ranks, arranged in named axes.
#pragma once

#include <memory>
#include <unordered_map>

#include "dtensor/rank.h"
#include "placement/notation.h"

namespace dtensor {

class PlanCache;  // dtensor/plan_cache.h
std::shared_ptr<PlanCache> make_plan_cache();

// A tensor on a mesh, interned: the same element type, shape and layout are the same object, whose id names it in
// caches. Axes of one rank are Replicate here: they hold the whole whatever was asked for.
struct LocalSpec : TensorSpec {
  uint64_t id;
  Box box;  // this rank's part, in global indices
  Shape local_shape;
};

// A handle; copies are the same mesh. Ranks are row-major over the axes, the last one fastest.
class DeviceMesh {
 public:
  DeviceMesh() = default;  // no mesh
  // Over the whole world. Errors: a product of sizes that is not the world's.
  DeviceMesh(Rank& rank, MeshShape shape);
  DeviceMesh(Rank& rank, std::string_view shape) : DeviceMesh(rank, MeshShape::parse(shape)) {}

  bool defined() const { return state_ != nullptr; }
  const MeshShape& shape() const { return state_->shape; }
  Rank& rank_state() const { return *state_->rank; }
  int rank() const { return state_->index; }  // in this mesh
  int size() const { return shape().world(); }
  int size(std::string_view axis) const { return shape().size(shape().axis(axis, "DeviceMesh::size")); }
  int coordinate(int axis) const { return shape().coordinate(rank(), axis); }
  int coordinate(std::string_view axis) const { return coordinate(shape().axis(axis, "DeviceMesh::coordinate")); }
  // The mesh of these axes that this rank is in: mesh["tp"], mesh["dp,tp"]; in the mesh's order.
  DeviceMesh operator[](std::string_view axes) const;

  // The communicator of the ranks that differ from this one on `axes` only.
  Communicator& communicator(AxisSet axes) const;
  const LocalSpec* intern(const TensorSpec& spec) const;
  // The redistributions planned so far.
  PlanCache& plans() const { return *state_->plans; }

  friend bool operator==(const DeviceMesh& a, const DeviceMesh& b) { return a.state_ == b.state_; }

 private:
  struct Hash {
    size_t operator()(const TensorSpec& s) const {
      uint64_t h = s.layout.code() * 0x9e3779b97f4a7c15u + uint64_t(s.dtype);
      for (int64_t n : s.shape) h = (h ^ uint64_t(n)) * 0x9e3779b97f4a7c15u + (h >> 29);
      return h;
    }
  };
  struct State {
    std::shared_ptr<Rank> rank;
    MeshShape shape;
    std::vector<int> ranks;  // in the world, by rank in this mesh
    int index = 0;
    std::map<AxisSet, Communicator*> communicators;
    std::unordered_map<TensorSpec, std::unique_ptr<LocalSpec>, Hash> specs;
    std::map<AxisSet, std::weak_ptr<State>> parts;  // sub-meshes: the same axes are the same mesh
    std::shared_ptr<PlanCache> plans = make_plan_cache();
  };
  std::shared_ptr<State> state_;
};

}  // namespace dtensor
