#include "dtensor/device_mesh.h"

#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <numeric>
#include <set>

#include "dtensor/distributed_tensor.h"
#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

TEST_CASE("a mesh gives each rank its place and the meshes of its axes") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{3}, {2, 3}, {2, 1, 2}, {2, 2, 2}}) {
    MeshShape shape = mesh_of(sizes);
    launch(shape.world(), [&](Rank& rank) {
      DeviceMesh mesh(rank, shape);
      check(mesh.rank() == rank.rank() && mesh.size() == shape.world() && mesh.shape() == shape, "the whole world");
      for (int a = 0; a < shape.axes(); ++a) {
        check(mesh.coordinate(a) == coordinates(shape, rank.rank())[size_t(a)], "coordinate");
        check(mesh.coordinate(shape.name(a)) == mesh.coordinate(a) && mesh.size(shape.name(a)) == sizes[size_t(a)],
              "by name");
      }
      for (AxisSet set = 1; set <= shape.all(); ++set) {
        DeviceMesh part = mesh[shape.names(set)];
        check(part.shape() == shape.select(set) && part.rank() == place_of(shape, rank.rank(), set),
              "a part of the mesh");
        check(part == mesh[shape.names(set)], "the same axes are the same mesh");
        check((part == mesh) == (set == shape.all()), "and others are not");
        // The sum over the group of ranks, through the mesh and through its part.
        int64_t sum = 0;
        for (int r : group_of(shape, rank.rank(), set)) sum += r;
        Tensor in = Tensor::of<int64_t>({1}, {rank.rank()}), out = in.clone(), again = in.clone();
        mesh.communicator(set).all_reduce({{in, out}}, Reduce::sum).wait();
        part.communicator(part.shape().all()).all_reduce({{in, again}}, Reduce::sum).wait();
        check(*out.data<int64_t>() == sum && *again.data<int64_t>() == sum, "the communicator is that of the group");
        check(&mesh.communicator(set) == &mesh.communicator(set), "made once");
      }
    });
  }
}

TEST_CASE("parts of parts of a mesh") {
  launch(8, [](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,cp=2,tp=2");
    DeviceMesh part = mesh["tp,dp"];  // in the mesh's order
    check(to_string(part.shape()) == "dp=2,tp=2", "{}", to_string(part.shape()));
    check(part["tp"].rank() == mesh["tp"].rank(), "the same place");
    Tensor in = Tensor::of<int64_t>({1}, {1 << rank.rank()}), out = in.clone();
    part["dp"].communicator(1).all_reduce({{in, out}}, Reduce::sum).wait();
    int64_t other = 1 << (rank.rank() ^ 4);
    check(*out.data<int64_t>() == *in.data<int64_t>() + other, "dp joins ranks that are 4 apart");
  });
}

TEST_CASE("meshes of the same names, sizes and ranks are the same mesh") {
  launch(4, [](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2"), again(rank, "dp=2,tp=2"), other(rank, "x=2,tp=2"),
        transposed(rank, "tp=2,dp=2");
    check(mesh == again && !(mesh == other) && !(mesh == transposed), "by names");
    check(mesh["tp"] == again["tp"] && mesh["tp"] == other["tp"], "the same ranks of other meshes");
    check(!(mesh["tp"] == transposed["tp"]) && mesh["tp"].shape() == transposed["tp"].shape(), "other ranks");
    DeviceMesh narrow(rank, "pp=1,dp=2,cp=1,tp=2");
    check(narrow["dp,tp"] == mesh && narrow["tp"] == mesh["tp"] && narrow["tp,cp"]["tp"] == mesh["tp"], "narrow axes");
    check(&mesh.communicator(3) == &other.communicator(3) && &mesh.communicator(3) == &rank.communicator(),
          "one communicator of the same ranks");
    check(&mesh.communicator(1) != &mesh.communicator(2), "others of others");
    check(&mesh["tp"].communicator(1) == &narrow.communicator(0b1100), "whatever axes led to them");
    // In a loop: the same specification, whatever holds the handle.
    uint64_t id = 0;
    for (int i = 0; i < 3; ++i) {
      uint64_t now = mesh["tp"].intern({DType::f32, {4}, Layout{Shard(0)}})->id;
      check(id == 0 || id == now, "the specification {} was {}", now, id);
      id = now;
    }
  });
}

TEST_CASE("a handle of a mesh holds its rank, and nothing holds it for ever") {
  std::weak_ptr<Rank> alive;
  DeviceMesh part;
  {
    auto rank = Rank::recorded(8);
    alive = rank;
    part = DeviceMesh(*rank, "dp=2,tp=4")["tp"];
  }
  CHECK(part.rank_state().world() == 8);
  CHECK(part.size() == 4);
  part = {};
  CHECK(alive.expired());
}

TEST_CASE("a mesh of many recorded ranks costs no more than a small one") {
  auto rank = Rank::recorded(131072);
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    DeviceMesh mesh(*rank, MeshShape({64, 2, 8, 16, 8, 1}, {"a", "b", "c", "d", "e", "n" + std::to_string(i)}));
    CHECK(mesh["a,e"].size() == 512);
    CHECK(mesh.communicator(0b00111).size() == 1024);
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

TEST_CASE("law 9: communicators are made with meshes, and others are an error that names their ranks") {
  launch(6, [](Rank& rank) {
    auto missing = [&](auto f) {
      return error_of(f).find(
                 "[Rank::communicator] none was made of ranks 0,3: communicators are made with a "
                 "DeviceMesh, of the ranks along any of its axes") == 0;
    };
    check(missing([&] {
            rank.communicator({0, 3});
          }) &&
              missing([&] { rank.communicator(RankGrid(0).with(2, 3)); }),
          "there is no mesh");
    check(rank.communicator({0, 1, 2, 3, 4, 5}).size() == 6, "the world's is always there");
    DeviceMesh mesh(rank, "dp=2,tp=3");
    int me = rank.rank();
    check(&rank.communicator({me % 3, me % 3 + 3}) == &mesh.communicator(1), "along an axis");
    check(rank.communicator(mesh.ranks(2)).size() == 3, "along the other");
    if (me % 3) check(missing([&] { rank.communicator({0, 3}); }), "not of other ranks");
    check(error_of([&] { rank.communicator({5, 4, 3, 2, 1, 0}); }) != "", "not in another order");
  });
}

TEST_CASE("law 9: the difference of two meshes is what an error shows") {
  auto rank = Rank::recorded(4), other = Rank::recorded(4);
  DeviceMesh mesh(*rank, "dp=2,tp=2");
  CHECK(difference(mesh, DeviceMesh(*rank, "x=4")) == "dp=2,tp=2 and x=4");
  CHECK(difference(mesh["tp"], DeviceMesh(*rank, "tp=2,dp=2")["tp"]) == "tp=2 of ranks 0,1 and tp=2 of ranks 0,2");
  CHECK(difference(mesh, DeviceMesh(*other, "dp=2,tp=2")) ==
        "dp=2,tp=2 and dp=2,tp=2 of two programs (each launch(), Rank::single() and Rank::recorded() has its own)");
  auto large = Rank::recorded(40);
  DeviceMesh wide(*large, "a=20,b=2");
  CHECK(difference(wide["a"], DeviceMesh(*large, "b=2,a=20")["a"]) ==
        "a=20 of ranks 0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,...,38 and a=20 of ranks "
        "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,...,19");
  DistributedTensor a = DistributedTensor::empty(mesh["tp"], TensorSpec{DType::f32, {4}, {}}),
                    b = DistributedTensor::empty(DeviceMesh(*rank, "tp=2,dp=2")["tp"], TensorSpec{DType::f32, {4}, {}});
  CHECK_THROWS_WITH(redistribute(std::vector{a, b}, std::vector<Layout>(2)),
                    Equals("[redistribute] tensors on two meshes: tp=2 of ranks 0,1 and tp=2 of ranks 0,2"));
}

TEST_CASE("a layout of a tensor is interned") {
  launch(4, [](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,cp=1,tp=2");
    std::set<const LocalSpec*> specs;
    std::set<uint64_t> ids;
    size_t count = 0;
    for (DType t : {DType::f32, DType::i64})
      for (const Shape& shape : {Shape{5, 8}, Shape{8, 5}, Shape{5, 8, 1}})
        for (const Layout& l : all_layouts(3, 2)) {
          SpecHandle s = mesh.intern({t, shape, l});
          Layout stripped = strip_narrow_axes(mesh.shape(), l);
          check(s == mesh.intern({t, shape, l}) && s == mesh.intern({t, shape, stripped}), "the same object");
          check(s->dtype == t && s->shape == shape && s->layout == stripped, "of what was asked for");
          check(s->box == local_box(mesh.shape(), shape, l, rank.rank()) && s->local_shape == s->box.shape(),
                "this rank's part");
          if (l == stripped) ++count;
          specs.insert(s), ids.insert(s->id);
        }
    check(specs.size() == count && ids.size() == count, "{} layouts, {} objects, {} ids", count, specs.size(),
          ids.size());
  });
}

TEST_CASE("specifications that nobody holds are bounded, the least recent going first, and held ones stay") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  SpecHandle held = mesh.intern({DType::f32, {1}, {}});
  std::vector<DistributedTensor> tensors;
  for (int64_t n = 2; n < 20; ++n) tensors.push_back(DistributedTensor::empty(mesh, {DType::f32, {n}, {}}));
  uint64_t often = mesh.intern({DType::f32, {20}, {}})->id, last = 0;
  for (int64_t n = 100; n < 100 + 3 * int64_t(DeviceMesh::max_unheld_specs); ++n) {
    uint64_t id = mesh.intern({DType::f32, {n}, {}})->id;
    REQUIRE(id > last);
    last = id;
    REQUIRE(mesh.intern({DType::f32, {20}, {}})->id == often);
    REQUIRE(mesh.interned() <= DeviceMesh::max_unheld_specs + 1 + tensors.size());
  }
  CHECK(mesh.intern({DType::f32, {1}, {}}) == held);
  for (const DistributedTensor& x : tensors) CHECK(mesh.intern(x.spec()) == &x.spec());
  CHECK(mesh.intern({DType::f32, {100}, {}})->id > last);  // another one: ids are not used again
}

TEST_CASE("a specification lives as long as somebody holds it, also when its mesh is gone") {
  auto rank = Rank::single();
  SpecHandle spec = DeviceMesh(*rank, "tp=1").intern({DType::f32, {3, 2}, {}}), other = spec;
  spec = {};
  CHECK(other->local_shape == Shape{3, 2});
}

TEST_CASE("law 9: a mesh that the program cannot have is an error") {
  auto rank = Rank::single();
  CHECK_THROWS_WITH(DeviceMesh(*rank, "dp=2,tp=4"),
                    Equals("[DeviceMesh] dp=2,tp=4 has 8 ranks, but the program runs on 1: launch as many"));
  DeviceMesh mesh(*rank, "dp=1,tp=1");
  CHECK_THROWS_WITH(mesh["pp"], Equals("[DeviceMesh::operator[]] the mesh has no axis \"pp\": it is dp=1,tp=1"));
  CHECK_THROWS_WITH(mesh["dp,"], Equals("[DeviceMesh::operator[]] the mesh has no axis \"\": it is dp=1,tp=1"));
  CHECK_THROWS_WITH(mesh.size("pp"), Equals("[DeviceMesh::size] the mesh has no axis \"pp\": it is dp=1,tp=1"));
  CHECK_THROWS_WITH(mesh.coordinate("pp"),
                    Equals("[DeviceMesh::coordinate] the mesh has no axis \"pp\": it is dp=1,tp=1"));
  CHECK_THROWS_WITH(mesh.intern({DType::f32, {2}, Layout{Shard(1)}}),
                    Equals("[DeviceMesh] f32[2] has no dimension 1 to shard"));
  for (const Shape& shape : {Shape{2, -1}, Shape{int64_t(1) << 32, int64_t(1) << 32}})
    CHECK_THROWS_WITH(mesh.intern({DType::f32, shape, Layout()}),
                      Equals("[DeviceMesh] f32" + to_string(shape) +
                             ": a size is negative, or there are more bytes than can be counted"));
  CHECK_THROWS_WITH(mesh.intern({DType::f32, {2}, Layout{Replicate(), Replicate(), Shard(0)}}),
                    Equals("[Layout] the layout has placements on more axes than the mesh has (dp=1,tp=1)"));
  CHECK_FALSE(DeviceMesh().defined());
}

TEST_CASE("threads of a rank split a range into parts that begin at multiples of the grain") {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000})
      for (int64_t grain : {1, 3, 16, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<bool> fits{true};
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int worker) {
          if (begin % grain || begin >= end || worker < 0 || worker >= threads || (end - begin < grain && end != n))
            fits = false;
          for (int64_t i = begin; i < end; ++i) ++seen[size_t(i)];
        });
        REQUIRE(fits);
        for (auto& s : seen) REQUIRE(s == 1);
      }
    for (int bad = 0; bad < 5; ++bad)  // in any part: the exception comes through and the pool goes on
      CHECK_THROWS_WITH(pool.parallel_for(5, 1,
                                          [&](int64_t begin, int64_t end, int) {
                                            if (begin <= bad && bad < end) throw Error("bad");
                                          }),
                        Equals("bad"));
    std::atomic<int64_t> sum{0};
    for (int i = 0; i < 200; ++i)
      pool.parallel_for(10, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    CHECK(sum == 2000);
  }
}
