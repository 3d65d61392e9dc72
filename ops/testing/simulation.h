// Values of a card's samples, what each rank holds of them, and its kernel, run without a mesh.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "ops/core/op.h"
#include "ops/testing/check.h"

namespace dtensor::testing {

// Numbers from a seed: splitmix64. Source: Steele et al., "Fast splittable pseudorandom number generators" (2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int n) { return int(next() % uint64_t(n)); }
  double uniform(double low, double high) { return low + (high - low) * (double(next() >> 11) * 0x1p-53); }

 private:
  uint64_t state_;
};

// A sample with values. Kinks lie at zero, so normal values keep away from it.
struct Case {
  const Op& op;
  std::string name;  // "sample 0 f64[5,7] f64[7,3]"
  std::vector<SampleInput::Kind> kinds;
  std::vector<Tensor> inputs;  // f64 or i64; undefined where absent
  Attributes attributes;
  bool derived = false;  // from a sample, by setting the size of a factor
};

// The samples themselves, then those with one factor's size set to each of `sizes`, where the rule accepts that.
std::vector<Case> cases_of(const Op& op, const std::vector<int64_t>& sizes, uint64_t seed);
// The case with another size of factor f, or nothing where the op does not accept it.
std::optional<Case> with_size(const Case& c, int f, int64_t size, uint64_t seed);
Case as_f32(const Case& c);

// `random`: contributions of any size that combine to the value; `identity`: one rank has it, others the identity.
enum class Contributions : uint8_t { random, identity };

// The part of `whole` that a rank holds. Ranks agree on the contributions to a Partial value by the seed.
Tensor part(const Tensor& whole, SampleInput::Kind kind, const MeshShape& mesh, const Layout& layout, int rank,
            Contributions contributions, uint64_t seed);

// "" where `got` has the type, shape and values of `expected`: up to tolerance x the largest one. NaN equals NaN.
std::string difference(const Tensor& got, const Tensor& expected, double tolerance);
bool same_bits(const Tensor& a, const Tensor& b);
// Whether its Partial inputs can be: bool has no sums and products.
bool exists(const Case& c, const Strategy& s);
// What the ranks' Partial parts combine to, as a balanced binary tree over rank order.
Tensor combined(std::span<const Tensor> parts, Reduce reduce);

// A case under its rule. Along the one axis of the mesh, the factors in the set `sharded` are split.
class Simulation {
 public:
  Simulation(const Case& c, int threads = 1);

  const Case& of() const { return case_; }
  const BoundRule& rule() const { return rule_; }
  DType output_type(int o) const;

  // What one rank computes from its inputs; outputs are filled with `garbage` before. Errors: the kernel's, and a
  // result of the wrong shape.
  std::vector<Tensor> run(const MeshShape& mesh, uint64_t sharded, int rank, std::span<const Tensor> inputs,
                          double garbage = NAN);
  // Of the whole inputs.
  std::vector<Tensor> run_whole(double garbage = NAN) { return run(MeshShape(), 0, 0, case_.inputs, garbage); }
  // Per output, what the ranks compute when the inputs lie so; nothing where the kernel throws.
  std::vector<std::vector<Tensor>> run_parts(const MeshShape& mesh, uint64_t sharded, std::span<const Placement> inputs,
                                             Contributions contributions, uint64_t seed);

 private:
  const Case& case_;
  BoundRule rule_;
  ThreadPool pool_;
  std::vector<cpu::Scratch> scratch_;
  std::shared_ptr<Allocator> allocator_ = std::make_shared<Allocator>();
};

// "Shard(1),Replicate->Partial(sum)"
std::string to_string(const Strategy& s);

// What check() says about gradients, launched ranks and composites: ops/testing/launched.cpp.
void check_launched(const Op& op, const std::vector<Case>& cases, const CheckOptions& options, Report& report);

}  // namespace dtensor::testing
