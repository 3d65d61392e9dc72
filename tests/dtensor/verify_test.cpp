#include "dtensor/verify.h"

#include <catch2/catch.hpp>

#include <limits>

#include "dtensor/comm_log.h"
#include "dtensor/creation.h"
#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

TEST_CASE("equal replicas pass and one broken element is found on every mesh") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{1}, {2}, {5}, {2, 2}, {2, 3}, {2, 1, 2}})
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{3}, Shape{5, 7}}) {
      MeshShape mesh_shape = mesh_of(sizes);
      for (const Layout& l : all_layouts(mesh_shape.axes(), shape.dims())) {
        for (int bad = -1; bad < mesh_shape.world(); ++bad) {
          Part part = part_of(mesh_shape, shape, l, std::max(bad, 0));
          size_t at = mix(uint64_t(bad) + 9) % std::max<size_t>(1, part.elements.size());
          std::string want;
          Layout stripped = strip_narrow_axes(mesh_shape, l);
          AxisSet copies = mesh_shape.wide() & ~stripped.sharded() & ~stripped.partial;
          if (bad >= 0 && !part.elements.empty() && copies) {
            std::vector<int> group = group_of(mesh_shape, bad, copies);
            Shape index, strides = contiguous_strides(shape);
            for (int d = 0; d < shape.dims(); ++d) index.push_back(part.elements[at] / strides[d] % shape[d]);
            bool first = group[0] == bad;
            std::string one = "1 (0x3f800000)", other = "nan (0x7fc00000)";
            want = fmt::format("[verify_replicas] w, {}: ranks {} and {} differ first at {}: {} and {}",
                               to_string(TensorSpec{DType::f32, shape, stripped}, mesh_shape), group[0],
                               first ? group[1] : bad, to_string(index), first ? other : one, first ? one : other);
          }
          launch(mesh_shape.world(), [&](Rank& rank) {
            DeviceMesh mesh(rank, mesh_shape);
            auto x = DistributedTensor::empty(mesh, {DType::f32, shape, l});
            fill(x.local_for_writing(), 1);
            if (rank.rank() == bad && x.local().numel())
              x.local_for_writing().data<float>()[at] = std::numeric_limits<float>::quiet_NaN();
            std::string error = error_of([&] { verify_replicas(x, "w"); });
            check(error == want, "\"{}\" and not \"{}\"", error, want);
          });
        }
      }
    }
}

TEST_CASE("replicas are compared bit by bit in every element type") {
  double nan = std::numeric_limits<double>::quiet_NaN();
  struct Case {
    const char* spec;
    double usual, odd;
    const char* text;  // "": equal
  };
  for (const Case& c : std::vector<Case>{
           {"f32[9]", nan, nan, ""},
           {"f32[9]", 0., -0., "0 (0x00000000) and -0 (0x80000000)"},
           {"f64[9]", 1.5, 2, "1.5 (0x3ff8000000000000) and 2 (0x4000000000000000)"},
           {"i64[9]", 3, -4, "3 and -4"},
           {"bool[9]", 0, 1, "false and true"},
       })
    launch(3, [&](Rank& rank) {
      DeviceMesh mesh(rank, "dp=3");
      DistributedTensor x = full(mesh, c.spec, c.usual), y = full(mesh, c.spec, rank.rank() == 2 ? c.odd : c.usual);
      copy(y.local().narrow(0, 8, 1), x.local_for_writing().narrow(0, 8, 1));
      std::string error = error_of([&] { verify_replicas(x); });
      std::string want = !*c.text
                             ? ""
                             : fmt::format("[verify_replicas] the tensor, {}: ranks 0 and 2 differ first at [8]: {}",
                                           to_string(x), c.text);
      check(error == want, "{}", error);
    });
  launch(2, [&](Rank& rank) {  // bf16 has bits too
    DeviceMesh mesh(rank, "dp=2");
    auto x = DistributedTensor::empty(mesh, {DType::bf16, {2}, {}});
    std::fill_n(x.local().bytes_data(), 4, std::byte{0});
    if (rank.rank()) x.local().bytes_data()[3] = std::byte{0x40};
    check(error_of([&] { verify_replicas(x); }).ends_with("differ first at [1]: 0 (0x0000) and 2 (0x4000)"), "bf16");
  });
}

TEST_CASE("many tensors are verified by one collective") {
  std::vector<std::vector<CommLog::Entry>> logs(5);
  auto program = [&](Rank& rank, size_t log_index) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    std::vector<DistributedTensor> list{zeros(mesh, "f32[7]"), zeros(mesh, "f32[7,4] dp=Shard(0) tp=Shard(1)"),
                                        ones(mesh, "i64[7] dp=Shard(0)")};
    std::vector<std::string> names{"a", "b", "c"};
    CommLog log(rank);
    verify_replicas(list, names);
    verify_replicas(std::span(list).subspan(1, 1), std::span(names).subspan(1, 1));  // no copies: nothing to do
    verify_replicas(std::span(list).first(0), std::span(names).first(0));
    logs[log_index] = log.entries();
  };
  launch(4, [&](Rank& rank) { program(rank, size_t(rank.rank())); });
  program(*Rank::recorded(4), 4);
  for (const auto& log : logs) {
    REQUIRE(log.size() == 1);
    CHECK((log[0].tensor == "i64[4,2]" && log[0].reason == "verify_replicas" && log == logs[0]));
  }
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1"), other(*rank, "tp=1");
  std::vector<DistributedTensor> list{zeros(mesh, "f32[]"), zeros(other, "f32[]")};
  std::vector<std::string> names{"a", "b"};
  CHECK(error_of([&] { verify_replicas(list, names); }) ==
        "[verify_replicas] a and b are on two meshes: dp=1 and tp=1");
  CHECK(error_of([&] { verify_replicas(list, {}); }) == "[verify_replicas] 2 tensors and 0 names");
  CHECK(error_of([&] { verify_replicas(DistributedTensor(), "w"); }) == "[verify_replicas] w is undefined");
}
