#include "dtensor/point_to_point.h"

#include <catch2/catch.hpp>

#include "dtensor/comm_log.h"
#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

namespace {

Tensor filled(Rank& rank, const Shape& shape, double v, DType t = DType::f32) {
  Tensor x(rank.allocator(), t, shape, rank.device());
  fill(x, v);
  return x;
}

// One step of a pipeline with one forward and one backward in turn: rank i sends forward while i + 1 sends backward.
double pipeline(const DeviceMesh& mesh, int micro_batches) {
  Rank& rank = mesh.rank_state();
  int stage = mesh.coordinate("pp"), stages = mesh.size("pp");
  int warm_up = std::min(micro_batches, stages - 1 - stage);
  double sum = 0;
  auto forward = [&](int m) {
    Tensor x = filled(rank, {2, 3}, m);
    if (stage > 0) receive(mesh, "pp", stage - 1, {x}, "activation").wait();
    Tensor y = filled(rank, {2, 3}, 0);
    copy(x, y);
    if (rank.device() != Device::meta) scale(y, 2);
    return y;
  };
  std::vector<Work> sent;
  for (int m = 0; m < warm_up; ++m) sent.push_back(send(mesh, "pp", stage + 1, {forward(m)}, "activation"));
  for (int m = 0; m < micro_batches; ++m) {
    Tensor g = filled(rank, {2, 3}, 1);
    if (m + warm_up < micro_batches) {
      Tensor y = forward(m + warm_up);
      if (stage + 1 < stages)
        sent.push_back(send(mesh, "pp", stage + 1, {y}, "activation"));
      else
        g = y;
    }
    if (stage + 1 < stages) receive(mesh, "pp", stage + 1, {g}, "gradient").wait();
    if (rank.device() != Device::meta) sum += element(g, 0);
    if (stage > 0) sent.push_back(send(mesh, "pp", stage - 1, {g}, "gradient"));
  }
  for (Work& w : sent) w.wait();
  return sum;
}

}  // namespace

TEST_CASE("stages send forward while others send backward") {
  for (const char* shape : {"pp=1", "pp=2", "pp=4", "dp=2,pp=3", "pp=2,tp=2"})
    for (int micro_batches : {1, 2, 8}) {
      MeshShape parsed = MeshShape::parse(shape);
      std::vector<double> sums(static_cast<size_t>(parsed.world()));
      launch(parsed.world(), [&](Rank& rank) {
        DeviceMesh mesh(rank, parsed);
        sums[size_t(rank.rank())] = pipeline(mesh, micro_batches);
      });
      double want = 0;
      for (int m = 0; m < micro_batches; ++m) want += m * double(1 << parsed.size(parsed.find("pp")));
      for (double sum : sums) CHECK(sum == want);
    }
}

TEST_CASE("tensors shift along the ring of an axis") {
  for (const char* shape : {"cp=1", "cp=2", "cp=5", "dp=2,cp=3", "cp=3,tp=2"})
    for (int distance : {0, 1, -1, 2, -7, 1000000}) {
      MeshShape parsed = MeshShape::parse(shape);
      launch(parsed.world(), [&](Rank& rank) {
        DeviceMesh mesh(rank, parsed);
        int n = mesh.size("cp"), me = mesh.coordinate("cp"), from = ((me - distance) % n + n) % n;
        // Each gives as many as its coordinate says; the second one is not contiguous.
        Tensor a = filled(rank, {me, 2}, 10 * rank.rank()),
               b = filled(rank, {3, 4}, rank.rank()).permute(std::vector{1, 0}), to_a = filled(rank, {from, 2}, -1),
               to_b = filled(rank, {4, 3}, -1);
        shift(mesh, "cp", distance, {a, b}, {to_a, to_b}).wait();
        int other = rank.rank() + (from - me) * (parsed.find("tp") < 0 ? 1 : 2);
        for (float v : values<float>(to_a)) check(v == float(10 * other), "{} instead of {}", v, 10 * other);
        for (float v : values<float>(to_b)) check(v == float(other), "{} instead of {}", v, other);
      });
    }
  auto alone = Rank::single();
  DeviceMesh mesh(*alone, "cp=1");
  Tensor x = filled(*alone, {3}, 5), y = filled(*alone, {3}, 0);
  shift(mesh, "cp", 1, {x}, {y}).wait();
  CHECK(values<float>(y) == values<float>(x));
}

TEST_CASE("law 8: point-to-point communication is in the log, of a dry run as of a run") {
  auto program = [](Rank& rank) {
    DeviceMesh mesh(rank, "pp=3,tp=2");
    CommLog log(rank);
    LabelScope module(rank, Label::Kind::module, "model.layers.1");
    PhaseScope phase(rank, Phase::forward);
    pipeline(mesh, 4);
    Tensor x = filled(rank, {4}, 1), y = filled(rank, {4}, 0), z = filled(rank, {2}, 0, DType::i64);
    shift(mesh, "pp", -2, {x, z}, {y, z.clone()}, "ring").wait();
    return log.entries();
  };
  std::vector<CommLog::Entry> ran;
  launch(6, [&](Rank& rank) {
    auto entries = program(rank);
    if (rank.rank() == 0) ran = entries;
  });
  auto recorded = Rank::recorded(6);
  CHECK(program(*recorded) == ran);
  CHECK(count_by_kind(ran) == std::map<std::string, int>{{"send", 4}, {"receive", 4}, {"shift", 2}});
  CHECK(to_string(ran[0]) == "forward  send           pp            24 B  f32[2,3] to 1  model.layers.1: activation");
  CommLog::Entry last = ran.back();
  CHECK(to_string(last) == "forward  shift          pp            16 B  i64[2] to 1  model.layers.1: ring");
  CHECK((last.from.empty() && last.to.empty() && last.peer == 1 && last.group == ran[ran.size() - 2].group));
  for (const CommLog::Entry& e : ran)
    if (e.collective == "receive")
      CHECK(to_string(e) == "forward  receive        pp            24 B  f32[2,3] from 1  model.layers.1: gradient");
}

TEST_CASE("law 9: what cannot be sent is an error that says why") {
  auto rank = Rank::recorded(5);
  DeviceMesh mesh(*rank, "pp=5,tp=1");
  Tensor meta(rank->allocator(), DType::f32, {2, 3}, Device::meta), one = Tensor::of<float>({2}, {0, 0});
  Tensor whole(rank->allocator(), DType::i64, {2, 3}, Device::meta);
  CHECK_THROWS_WITH(send(mesh, "pp", 2, {meta}),
                    Equals("[send] coordinates 0 and 2 on pp=5 are not next to each other: lanes lead to neighbours on "
                           "the ring; pass it on from one to the next, or use shift"));
  CHECK_THROWS_WITH(receive(mesh, "pp", 0, {meta}), Contains("[receive] coordinates 0 and 0 on pp=5 are not next"));
  CHECK_THROWS_WITH(receive(mesh, "tp", 0, {meta}), Contains("[receive] coordinates 0 and 0 on tp=1 are not next"));
  CHECK_THROWS_WITH(send(mesh, "pp", 5, {meta}), Equals("[send] there is no coordinate 5 on pp=5"));
  CHECK_THROWS_WITH(send(mesh, "pp", -1, {meta}), Equals("[send] there is no coordinate -1 on pp=5"));
  CHECK_THROWS_WITH(send(mesh, "dp", 1, {meta}), Equals("[send] the mesh has no axis \"dp\": it is pp=5,tp=1"));
  CHECK_THROWS_WITH(send(mesh, "pp", 1, {meta, Tensor()}), Equals("[send] tensor 1 is undefined"));
  CHECK_THROWS_WITH(send(mesh, "pp", 4, {one}),
                    Equals("[send] tensor 0 is on cpu, but the rank's tensors are on meta: bring it there first"));
  CHECK_THROWS_WITH(receive(mesh, "pp", 4, {meta.permute(std::vector{1, 0})}),
                    Equals("[receive] place 0 of shape [3,2] is not contiguous: receive into a new tensor"));
  CHECK_THROWS_WITH(shift(mesh, "pp", 1, {meta, meta}, {meta}), Equals("[shift] 2 tensors, but places for 1"));
  CHECK_THROWS_WITH(shift(mesh, "pp", 1, {meta}, {whole}), Equals("[shift] tensor 0 is f32, but its place is i64"));
  CHECK_NOTHROW(send(mesh, "pp", 4, {}));
  CHECK_NOTHROW(receive(mesh, "pp", 1, {meta}).wait());
}
