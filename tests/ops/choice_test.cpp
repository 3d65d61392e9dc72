// The dispatcher's choice for every card and sample against an exhaustive search.
#include "placement/propagate.h"
#include "tests/ops/helpers.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

Layout random_layout(Random& random, const MeshShape& mesh, int dims, Reduce reduce) {
  Layout l;
  for (int a = 0; a < mesh.axes(); ++a) {
    int d = random.below(dims + 2);
    if (d < dims)
      l.split[size_t(d)].insert(random.below(l.split[size_t(d)].count + 1), a);
    else if (d > dims)
      l.partial |= axis_bit(a), l.reduce = reduce;
  }
  return l;
}

// The choice for a sample in random layouts; what is wrong with it, if anything.
std::string fault(const Op& op, const Sample& sample, const MeshShape& mesh, Random& random) {
  Reduce reduce = all_reductions[random.below(5)];
  std::vector<TensorSpec> specs;
  std::vector<const TensorSpec*> inputs;
  std::vector<const Shape*> shapes;
  specs.reserve(sample.inputs.size());
  for (const SampleInput& in : sample.inputs) {
    bool absent = in.kind == SampleInput::Kind::absent;
    specs.push_back({in.kind == SampleInput::Kind::index ? DType::i64 : DType::f32, in.shape,
                     random_layout(random, mesh, in.shape.dims(), reduce)});
    inputs.push_back(absent ? nullptr : &specs.back());
    shapes.push_back(absent ? nullptr : &specs.back().shape);
  }
  BoundRule rule = bind_rule(op, shapes, sample.attributes, DType::f32);
  Layout target = random_layout(random, mesh, rule.outputs()[0].shape.dims(), reduce);
  const Layout* wanted[] = {random.below(2) ? &target : nullptr};
  Propagation p{rule, mesh, inputs, wanted, {}};
  Choice found = choose(p), first = all_choices(p)[0];
  bool same = found.inputs == first.inputs && found.outputs == first.outputs && found.factors == first.factors &&
              found.bytes == first.bytes && found.moves == first.moves && found.output_bytes == first.output_bytes &&
              found.output_moves == first.output_moves;
  if (same) return "";
  std::string text = fmt::format("{} on {}:", op.name, to_string(mesh));
  for (const TensorSpec* in : inputs) text += in ? " " + to_string(*in, mesh) : " -";
  return fmt::format("{}: {} bytes and {} moves, not {} and {}", text, found.bytes, found.moves, first.bytes,
                     first.moves);
}

void compare(const std::vector<std::vector<int>>& meshes, int times) {
  Random random{1};
  for (const Op* op : ops::cards()) {
    if (op->composite) continue;
    for (const Sample& sample : op->sample)
      for (const std::vector<int>& sizes : meshes)
        for (int i = 0; i < times; ++i) CHECK(fault(*op, sample, mesh_of(sizes), random) == "");
  }
}

}  // namespace

TEST_CASE("the choice for every card is that of an exhaustive search") { compare({{2}, {3}, {2, 2}, {3, 2}}, 2); }

TEST_CASE("the choice for every card on three and four axes is that of an exhaustive search", "[nightly]") {
  compare({{2, 2, 2}, {2, 3, 2}, {2, 2, 2, 2}}, 3);
}
