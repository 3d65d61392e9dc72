// DeviceMesh: the ranks, arranged in named axes.
#pragma once

#include <array>
#include <memory>
#include <unordered_set>
#include <utility>

#include "dtensor/rank.h"
#include "placement/notation.h"

namespace dtensor {

class PlanCache;  // dtensor/plan_cache.h
std::shared_ptr<PlanCache> make_plan_cache();

// A tensor on a mesh, interned: the same element type, shape and layout are the same object, whose id names it in
// caches and is never used again. Axes of one rank are Replicate here: they hold the whole whatever was asked for.
struct LocalSpec : TensorSpec {
  uint64_t id;
  Box box;  // this rank's part, in global indices
  Shape local_shape;
  DType local_dtype;  // of this part: f32 where contributions of bf16 are still to be summed (part_dtype)

  LocalSpec(const TensorSpec& spec, uint64_t id, const Box& box, DType reduce_dtype)
      : TensorSpec(spec),
        id(id),
        box(box),
        local_shape(box.shape()),
        local_dtype(part_dtype(spec.dtype, spec.layout, reduce_dtype)) {}
  LocalSpec(const LocalSpec&) = delete;

 private:
  friend class SpecHandle;
  friend class DeviceMesh;
  mutable uint32_t handles_ = 0;
  mutable uint64_t last_use_ = 0;  // the number of the intern() that gave it last
};

// Holds an interned specification. The count is a plain one: tensors of a rank, their specifications and whoever holds
// these belong to the rank's thread.
class SpecHandle {
 public:
  SpecHandle() = default;
  SpecHandle(const LocalSpec* spec) : spec_(spec) {
    if (spec_) ++spec_->handles_;
  }
  SpecHandle(const SpecHandle& other) : SpecHandle(other.spec_) {}
  SpecHandle(SpecHandle&& other) noexcept : spec_(std::exchange(other.spec_, nullptr)) {}
  SpecHandle& operator=(SpecHandle other) noexcept {
    std::swap(spec_, other.spec_);
    return *this;
  }
  ~SpecHandle() {
    if (spec_ && --spec_->handles_ == 0) destroy(spec_);
  }

  operator const LocalSpec*() const { return spec_; }
  const LocalSpec& operator*() const { return *spec_; }
  const LocalSpec* operator->() const { return spec_; }

 private:
  static void destroy(const LocalSpec* spec);
  const LocalSpec* spec_ = nullptr;
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
  // Errors: sizes that are negative or too large, a dimension to shard that is not there.
  SpecHandle intern(const TensorSpec& spec) const;
  // Specifications that are known: those that somebody holds, and at most max_unheld_specs besides: beyond that the
  // half interned least recently goes.
  static constexpr size_t max_unheld_specs = 8192;
  size_t interned() const { return state_->specs.size(); }
  // The redistributions planned so far.
  PlanCache& plans() const { return *state_->plans; }

  friend bool operator==(const DeviceMesh& a, const DeviceMesh& b) { return a.state_ == b.state_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(const TensorSpec& s) const {
      uint64_t h = s.layout.code() * 0x9e3779b97f4a7c15u + uint64_t(s.dtype);
      for (int64_t n : s.shape) h = (h ^ uint64_t(n)) * 0x9e3779b97f4a7c15u + (h >> 29);
      return h;
    }
    size_t operator()(const SpecHandle& s) const { return (*this)(static_cast<const TensorSpec&>(*s)); }
  };
  struct Equal {
    using is_transparent = void;
    static const TensorSpec& spec(const TensorSpec& s) { return s; }
    static const TensorSpec& spec(const SpecHandle& s) { return *s; }
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return spec(a) == spec(b);
    }
  };
  struct State {
    Rank* rank;
    MeshShape shape;
    std::vector<int> strides;  // of the axes, in ranks of the world
    int index;
    std::array<Communicator*, 1 << max_axes> communicators = {};  // by axes, those asked for
    std::unordered_set<SpecHandle, Hash, Equal> specs = {};
    size_t next_sweep = max_unheld_specs;  // when there are so many specs
    uint64_t uses = 0;                     // calls of intern()
    std::map<AxisSet, State*> parts = {};
    std::shared_ptr<PlanCache> plans = make_plan_cache();
  };
  struct Table;
  DeviceMesh(Rank& rank, MeshShape shape, std::vector<int> strides, int index);
  void make_communicators() const;
  void sweep_specs() const;

  std::shared_ptr<State> state_;  // shares the Rank, which owns the state
};

// What differs between two meshes, for errors: "dp=2 and tp=2", or with ranks where only these differ.
std::string difference(const DeviceMesh& a, const DeviceMesh& b);

}  // namespace dtensor
