// What a call would do, without data.
#include "ops/explain.h"

#include <catch2/catch.hpp>
#include <set>

#include "dtensor/comm_log.h"
#include "dtensor/launch.h"
#include "ops/all.h"
#include "ops/cards.h"

using namespace dtensor;

namespace {

struct Call {
  std::string function, mesh;
  std::vector<std::string> operands;
  NamedValues values = {};
};

Explanation explained(const Call& c) {
  MeshShape mesh = MeshShape::parse(c.mesh);
  std::vector<TensorSpec> specs;
  for (const std::string& text : c.operands) specs.push_back(parse_spec(text, mesh));
  std::vector<const TensorSpec*> operands;
  for (const TensorSpec& s : specs) operands.push_back(&s);
  return explain(c.function, mesh, operands, c.values);
}

}  // namespace

TEST_CASE("ways() lists the ways to run a card, the cheapest first") {
  MeshShape mesh = MeshShape::parse("tp=2");
  TensorSpec a = parse_spec("f32[4,6] tp=Shard(1)", mesh), b = parse_spec("f32[6,8] tp=Shard(0)", mesh);
  const TensorSpec* inputs[] = {&a, &b};
  Ways w = ways(ops::matmul_op, mesh, inputs, {});
  REQUIRE(!w.list.empty());
  CHECK(w.list[0].choice.bytes == 0);
  CHECK(to_string(w.outputs[0], mesh) == "f32[4,8] tp=Partial(sum)");
  for (size_t i = 1; i < w.list.size(); ++i) CHECK(w.list[i - 1].choice.bytes <= w.list[i].choice.bytes);
  CHECK(w.why() == "the fewest of 4 ways");
  const TensorSpec whole = parse_spec("f32[4,6]", mesh);
  const TensorSpec* replicated[] = {&whole};
  CHECK(ways(ops::relu_op, mesh, replicated, {}).why() == "as few as 3 of 3 ways, with the fewest redistributions");
  CHECK_THROWS_WITH(ways(ops::cross_entropy_op, mesh, inputs, {}),
                    "[explain] cross_entropy is a composite of several ops, not one card");
}

TEST_CASE("of the many ways on six axes the best are listed") {
  MeshShape mesh = MeshShape::parse("a=2,b=2,c=2,d=2,e=2,f=2");
  TensorSpec x = parse_spec("f32[64,64] a=Shard(0)", mesh);
  const TensorSpec* inputs[] = {&x, &x};
  Ways w = ways(ops::add_op, mesh, inputs, {});
  CHECK(w.list.size() == Ways::most);
  CHECK(!w.all());
  CHECK(w.list[0].choice.moves == 0);
  CHECK(w.why() == "as few as 100 of the 100 best ways, with the fewest redistributions");
}

TEST_CASE("law 8: what is explained is what runs") {
  const Call calls[] = {
      {"matmul", "tp=2", {"f32[4,6] tp=Shard(1)", "f32[6,8]"}},
      {"matmul", "x=2,y=2", {"f32[4,6] x=Shard(0) y=Shard(1)", "f32[6,8] x=Shard(1) y=Shard(1)"}},
      {"mul", "tp=2", {"f32[4,6] tp=Partial", "f32[4,6] tp=Partial"}},
      {"mean", "tp=2", {"f32[4,6] tp=Shard(1)"}, {{"dim", int64_t(1)}, {"keepdim", true}}},
      {"rms_norm", "tp=2", {"f32[4,6] tp=Shard(1)", "f32[6]"}},
      {"cross_entropy", "dp=2,tp=2", {"f32[4,6] dp=Shard(0) tp=Shard(1)", "i64[4] dp=Shard(0)"}},
      {"reshape", "tp=2", {"f32[4,6] tp=Shard(1)"}, {{"shape", std::vector<int64_t>{24}}}},
  };
  for (const Call& c : calls) {
    Explanation e = explained(c);
    std::string predicted, ran;
    for (const Explanation::Event& event : e.events)
      for (const Explanation::Move& m : event.inputs)
        for (const Step& s : m.plan.steps)
          if (!is_local(s.kind)) predicted += fmt::format("{} {} ", collective_name(s.kind), s.bytes);
    MeshShape shape = MeshShape::parse(c.mesh);
    launch(shape.world(), [&](Rank& rank) {
      DeviceMesh mesh(rank, shape);
      std::vector<DistributedTensor> inputs;
      std::vector<const DistributedTensor*> operands;
      for (const std::string& text : c.operands) {
        TensorSpec s = parse_spec(text, shape);
        inputs.push_back(
            DistributedTensor::distribute(Tensor::zeros(rank.allocator(), s.dtype, s.shape), mesh, s.layout));
      }
      for (const DistributedTensor& x : inputs) operands.push_back(&x);
      CommLog log(rank);
      std::vector<DistributedTensor> out = ops::call_function(c.function, operands, c.values);
      if (rank.rank() != 0) return;
      for (const CommLog::Entry& entry : log.entries()) ran += fmt::format("{} {} ", entry.collective, entry.bytes);
      REQUIRE(out.size() == e.outputs.size());
      for (size_t o = 0; o < out.size(); ++o) CHECK(static_cast<const TensorSpec&>(out[o].spec()) == e.outputs[o]);
    });
    INFO(c.function << " on " << c.mesh);
    CHECK(predicted == ran);
  }
}

TEST_CASE("every function has a signature that begins with its name, once") {
  std::set<std::string_view> names;
  for (const ops::Function& f : ops::functions()) {
    CHECK(names.insert(f.name).second);
    CHECK(f.signature.starts_with(std::string(f.name) + "("));
    CHECK(f.signature.ends_with(")"));
  }
}
