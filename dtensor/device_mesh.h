// DeviceMesh: the ranks, arranged in named axes.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "dtensor/rank.h"
#include "placement/notation.h"

namespace dtensor {

// A tensor on a mesh, interned: the same element type, shape and layout are the same object, whose id names it in
// caches. Axes of one rank are Replicate here: they hold the whole whatever was asked for.
struct LocalSpec : TensorSpec {
  uint64_t id;
  Box box;  // this rank's part, in global indices
  Shape local_shape;
};

// A handle that holds its Rank. Ranks are row-major over the axes, the last one fastest. On one Rank, meshes of the
// same names, sizes and ranks are the same mesh, which lives as long as the Rank.
class DeviceMesh {
 public:
  DeviceMesh() = default;  // no mesh
  // Over the whole world. All ranks make the same meshes in the same order: with a mesh its communicators are made,
  // those of every set of axes, in one order. Errors: a product of sizes that is not the world's.
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

  // The ranks that differ from this one on `axes` only, as ranks of the world; and their communicator. That of a single
  // axis has lanes.
  RankGrid ranks(AxisSet axes) const;
  Communicator& communicator(AxisSet axes) const;
  const LocalSpec* intern(const TensorSpec& spec) const;

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
    Rank* rank;
    MeshShape shape;
    std::vector<int> strides;  // of the axes, in ranks of the world
    int index;
    std::array<Communicator*, 1 << max_axes> communicators = {};  // by axes, those asked for
    std::unordered_map<TensorSpec, std::unique_ptr<LocalSpec>, Hash> specs = {};
    std::map<AxisSet, State*> parts = {};
  };
  struct Table;
  DeviceMesh(Rank& rank, MeshShape shape, std::vector<int> strides, int index);
  void make_communicators() const;

  std::shared_ptr<State> state_;  // shares the Rank, which owns the state
};

// What differs between two meshes, for errors: "dp=2 and tp=2", or with ranks where only these differ.
std::string difference(const DeviceMesh& a, const DeviceMesh& b);

}  // namespace dtensor
