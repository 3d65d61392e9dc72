#include "dtensor/distributed_tensor.h"

#include <catch2/catch.hpp>

#include <functional>
#include <sstream>

#include "dtensor/creation.h"
#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

namespace {

std::vector<float> counting(int64_t n) {
  std::vector<float> v;
  for (int64_t i = 0; i < n; ++i) v.push_back(float(i + 1));
  return v;
}

}  // namespace

TEST_CASE("law 1: what is distributed is whole again in full") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{1}, {3}, {2, 2}, {2, 3}})
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{5}, Shape{5, 8}, Shape{1, 3, 4}})
      for (Reduce r : all_reductions) {
        MeshShape mesh_shape = mesh_of(sizes);
        std::vector<float> whole = counting(numel(shape));
        launch(mesh_shape.world(), [&](Rank& rank) {
          DeviceMesh mesh(rank, mesh_shape);
          Tensor t = tensor_of(rank.allocator(), shape, whole);
          Log log;
          Observing scope(rank, log);
          for (const Layout& l : all_layouts(mesh_shape.axes(), shape.dims(), true, r)) {
            auto x = DistributedTensor::distribute(t, mesh, l);
            check(log.lines.empty(), "distribute communicates nothing");
            check(x.layout() == strip_narrow_axes(mesh_shape, l) && x.shape() == shape && x.dtype() == DType::f32, "{}",
                  to_string(x));
            Part part = part_of(mesh_shape, shape, l, rank.rank());
            std::vector<float> local = values<float>(x.local());
            check(local.size() == part.elements.size(), "a part of {}", to_string(x));
            bool keeps = r == Reduce::min || r == Reduce::max || r == Reduce::avg ||
                         place_of(mesh_shape, rank.rank(), x.layout().partial) == 0;
            for (size_t i = 0; i < local.size(); ++i)
              check(local[i] == (keeps                  ? whole[size_t(part.elements[i])]
                                 : r == Reduce::product ? 1.f
                                                        : 0.f),
                    "element {} of {} is {}", i, to_string(x), local[i]);
            check(values<float>(x.full_tensor()) == whole, "full_tensor() of {}", to_string(x));
            check(x.full_tensor().is_contiguous(), "full_tensor() is contiguous");
            log = {};
          }
        });
      }
}

TEST_CASE("placements in braces are normalized") {
  launch(4, [](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    auto x =
        DistributedTensor::distribute(tensor_of(rank.allocator(), {4, 6}, counting(24)), mesh, {Shard(-1), Shard(0)});
    check(to_string(x) == "f32[4,6] dp=Shard(1) tp=Shard(0)", "{}", to_string(x));
    check(x.size(-1) == 6 && x.size(0) == 4 && x.dims() == 2, "sizes are global");
    check(x.redistribute({Shard(1), Shard(-2)}).id() == x.id(), "the same layout is the same value");
    check(x.redistribute("tp=Shard(-2) dp=Shard(1)").id() == x.id(), "by text");
    check(to_string(DistributedTensor::distribute(x.full_tensor(), mesh, "tp=Shard(0) dp=Shard(0)")) ==
              "f32[4,6] tp=Shard(0) dp=Shard(0)",
          "by text");
    check(to_string(x.redistribute({Replicate()})) == "f32[4,6] dp=Replicate tp=Shard(0)", "others stay as they are");
    check(to_string(x.redistribute("tp=Replicate")) == "f32[4,6] dp=Shard(1) tp=Replicate", "also by text");
    check(to_string(x.redistribute("*=Replicate")) == "f32[4,6] dp=Replicate tp=Replicate", "* is all others");
  });
}

TEST_CASE("a local part becomes a tensor") {
  auto error = error_of([] {
    launch(2, [](Rank& rank) {
      DeviceMesh mesh(rank, "tp=2");
      int64_t rows = rank.rank() ? 2 : 3;
      auto x = DistributedTensor::from_local(tensor_of(rank.allocator(), {rows, 2}, counting(rows * 2)), mesh,
                                             {Shard(0)}, {5, 2});
      check(values<float>(x.full_tensor()) == std::vector<float>{1, 2, 3, 4, 5, 6, 1, 2, 3, 4},
            "the parts of both ranks");
      auto y = DistributedTensor::from_local(scattered(rank.allocator(), {rows, 2}, counting(rows * 2)), mesh,
                                             {Shard(0)}, {5, 2});
      check(values<float>(y.full_tensor()) == values<float>(x.full_tensor()), "strides do not matter");
      if (rank.rank()) DistributedTensor::from_local(x.local(), mesh, {Shard(1)}, {5, 2});
      mesh.communicator(1).barrier();
    });
  });
  CHECK(error == "[from_local] the part of f32[5,2] tp=Shard(1) on rank 1 has shape [5,1], not [2,2] (rank 1 of 2)");
}

TEST_CASE("a single value is read without communication") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto one = [&](Layout l) { return DistributedTensor::distribute(Tensor::of<float>({1, 1}, {2.5f}), mesh, l); };
    check(one({}).item() == 2.5, "item");
    check(DistributedTensor::distribute(Tensor::of<int64_t>({}, {7}), mesh, {}).item() == 7, "item of a scalar");
    check(DistributedTensor::distribute(Tensor::of<bool>({}, {true}), mesh, {}).item() == 1, "item of a bool");
    auto expect_error = [](auto f, const std::string& want) { check(error_of(f) == want, "{}", error_of(f)); };
    expect_error([&] { one({Partial()}).item(); },
                 "[item] f32[1,1] tp=Partial(sum) is not Replicate: redistribute it first, or use full_tensor()");
    expect_error([&] { one({Shard(0)}).item(); },
                 "[item] f32[1,1] tp=Shard(0) is not Replicate: redistribute it first, or use full_tensor()");
    expect_error(
        [&] {
          DistributedTensor::distribute(Tensor::of<float>({2}, {1, 2}), mesh, {}).item();
        },
        "[item] f32[2] tp=Replicate has 2 elements");
  });
  auto rank = Rank::recorded(2);
  auto meta = DistributedTensor::empty(DeviceMesh(*rank, "tp=2"), {DType::f32, {}, {}});
  CHECK_THROWS_WITH(meta.item(), Equals("[item] a meta tensor has no value: f32[] tp=Replicate"));
}

TEST_CASE("writing in place copies what others share") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  auto x = DistributedTensor::empty(mesh, {DType::f32, {2, 3}, {}});
  copy(Tensor::of<float>({2, 3}, counting(6)), x.local_for_writing());
  CHECK(x.version() == 1);
  float* data = x.local().data<float>();
  x.local_for_writing().data<float>()[0] = 10;
  CHECK((x.local().data<float>() == data && x.version() == 2));  // nobody shares it: in place
  {
    Tensor shared = x.local(), view = x.local().narrow(0, 1, 1);
    DistributedTensor same = x;  // a handle to the same value
    x.local_for_writing().data<float>()[0] = 20;
    CHECK(x.local().data<float>() != data);
    CHECK(shared.data<float>()[0] == 10);
    CHECK(values<float>(view) == std::vector<float>{4, 5, 6});
    CHECK(same.local().data<float>()[0] == 20);
    CHECK((same.version() == 3 && same.id() == x.id()));
  }
  // A part that is not contiguous becomes contiguous.
  auto strided = DistributedTensor::from_local(scattered(rank->allocator(), {2, 3}, counting(6)), mesh, {}, {2, 3});
  CHECK_FALSE(strided.local().is_contiguous());
  CHECK(values<float>(strided.local_for_writing()) == counting(6));
  CHECK(strided.local().is_contiguous());

  SECTION("copy_ takes the other's elements") {
    auto y = DistributedTensor::distribute(Tensor::of<float>({2, 3}, {6, 5, 4, 3, 2, 1}), mesh, {});
    uint64_t id = x.id();
    x.copy_(y);
    CHECK(values<float>(x.local()) == std::vector<float>{6, 5, 4, 3, 2, 1});
    CHECK((x.id() == id && x.version() == 4 && y.version() == 0));
    CHECK_FALSE(x.local().shares_storage(y.local()));
    x.copy_(x);
    CHECK(values<float>(x.local()) == std::vector<float>{6, 5, 4, 3, 2, 1});
    auto z = DistributedTensor::distribute(Tensor::of<float>({3}, {1, 2, 3}), mesh, {});
    CHECK_THROWS_WITH(
        x.copy_(z), Equals("[copy_] f32[3] tp=Replicate is not f32[2,3] tp=Replicate: redistribute or cast it first"));
  }
}

// A slice shows its source's storage, and a collective may still read a tensor whose redistribution has returned.
TEST_CASE("writing in place after a redistribution changes no other value") {
  launch(4, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=4");
    Shape shape{64, 33};
    for (int round = 0; round < 50; ++round) {
      auto x =
          DistributedTensor::distribute(tensor_of(rank.allocator(), shape, counting(numel(shape))), mesh, {Shard(0)});
      DistributedTensor whole = x.redistribute({Replicate()}), columns = x.redistribute({Shard(1)}),
                        rows = whole.redistribute({Shard(0)});
      fill(x.local_for_writing(), -1);
      fill(columns.local_for_writing(), -2);
      check(values<float>(whole.local()) == counting(numel(shape)), "the gathered value stays");
      fill(rows.local_for_writing(), -3);
      check(values<float>(whole.local()) == counting(numel(shape)), "a slice is written apart");
      auto sum =
          DistributedTensor::distribute(tensor_of(rank.allocator(), shape, counting(numel(shape))), mesh, {Partial()});
      DistributedTensor total = sum.redistribute({Replicate()});
      fill(sum.local_for_writing(), -4);
      check(values<float>(total.local()) == counting(numel(shape)), "the sum stays");
    }
  });
}

TEST_CASE("handles share a value and ids are never used twice") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  DistributedTensor undefined, a = DistributedTensor::empty(mesh, {DType::f32, {2}, {}}),
                               b = DistributedTensor::empty(mesh, {DType::f32, {2}, {}}), c = a;
  CHECK_FALSE(undefined.defined());
  CHECK((a.id() == c.id() && a.id() != b.id()));
  CHECK(&a.spec() == &b.spec());
  uint64_t last = b.id();
  for (int i = 0; i < 5; ++i) {
    auto x = DistributedTensor::empty(mesh, {DType::f32, {2}, {}});
    CHECK(x.id() > last);
    last = x.id();
  }
}

TEST_CASE("meta tensors are materialized part by part") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    SpecHandle spec = mesh.intern({DType::f32, {6, 4}, {Shard(0)}});
    auto x =
        DistributedTensor::empty(mesh, spec, Tensor(rank.allocator(), DType::f32, spec->local_shape, Device::meta));
    check(x.is_meta(), "meta at first");
    int64_t before = rank.allocator()->bytes_in_use();
    x.materialize();
    check(!x.is_meta() && rank.allocator()->bytes_in_use() == before + 48 && x.version() == 1, "only this rank's part");
    float* data = x.local().data<float>();
    x.materialize();
    check(x.local().data<float>() == data && x.version() == 1, "once");
  });
}

TEST_CASE("law 9: a part is on the device of its rank") {
  auto real = Rank::single(), dry = Rank::recorded(1);
  DeviceMesh on_cpu(*real, "x=1"), on_meta(*dry, "x=1");
  Tensor host = tensor_of(real->allocator(), {2, 3}, counting(6));
  CHECK_THROWS_WITH(DistributedTensor::from_local(host, on_meta, {}, {2, 3}),
                    Equals("[from_local] the part f32[2,3] is on cpu, but the tensors of rank 0 are on meta: use "
                           ".to(rank.allocator())"));
  CHECK(DistributedTensor::from_local(host.to(dry->allocator()), on_meta, {}, {2, 3}).is_meta());
  CHECK(dry->allocator()->bytes_in_use() == 0);
  CHECK(DistributedTensor::from_local(Tensor::placeholder(DType::f32, {2, 3}), on_cpu, {}, {2, 3}).is_meta());
  CHECK(DistributedTensor::distribute(host, on_meta, Layout()).is_meta());
}

TEST_CASE("printing shows the layout and the local part") {
  std::vector<std::string> texts(2);
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto x = DistributedTensor::distribute(tensor_of(rank.allocator(), {3, 2}, counting(6)), mesh, {Shard(0)});
    std::ostringstream out;
    out << x;
    texts[size_t(rank.rank())] = out.str();
  });
  CHECK(texts[0] == "f32[3,2] tp=Shard(0)\nrank 0 at [0,0]: f32[2,2]\n[[1., 2.],\n [3., 4.]]");
  CHECK(texts[1] == "f32[3,2] tp=Shard(0)\nrank 1 at [2,0]: f32[1,2]\n[[5., 6.]]");
  auto text = [](const DistributedTensor& x) {
    std::ostringstream out;
    out << x;
    return out.str();
  };
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  CHECK(text({}) == "an undefined tensor");
  auto recorded = Rank::recorded(2);
  CHECK(text(DistributedTensor::empty(DeviceMesh(*recorded, "tp=2"), {DType::f32, {3}, {Shard(0)}})) ==
        "f32[3] tp=Shard(0)\nrank 0 at [0]: f32[2] meta");
}

TEST_CASE("law 9: asking anything of an undefined tensor is an error that names what was asked") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "tp=1");
  DistributedTensor x = DistributedTensor::empty(mesh, {DType::f32, {2}, {}});
  using T = DistributedTensor;
  const std::pair<const char*, std::function<void(T&)>> cases[] = {
      {"mesh", [](T& u) { u.mesh(); }},
      {"spec", [](T& u) { u.spec(); }},
      {"shape", [](T& u) { u.shape(); }},
      {"dims", [](T& u) { u.dims(); }},
      {"size", [](T& u) { u.size(0); }},
      {"dtype", [](T& u) { u.dtype(); }},
      {"layout", [](T& u) { u.layout(); }},
      {"is_meta", [](T& u) { u.is_meta(); }},
      {"local", [](T& u) { u.local(); }},
      {"full_tensor", [](T& u) { u.full_tensor(); }},
      {"item", [](T& u) { u.item(); }},
      {"redistribute", [](T& u) { u.redistribute("tp=Replicate"); }},
      {"redistribute", [](T& u) { u.redistribute({Replicate()}); }},
      {"copy_", [&](T& u) { u.copy_(x); }},
      {"copy_", [&](T& u) { x.copy_(u); }},
      {"local_for_writing", [](T& u) { u.local_for_writing(); }},
      {"materialize", [](T& u) { u.materialize(); }},
      {"id", [](T& u) { u.id(); }},
      {"version", [](T& u) { u.version(); }},
  };
  for (const auto& [name, ask] : cases) {
    T u;
    CHECK_THROWS_WITH(ask(u),
                      Equals(std::string("[") + name + "] the tensor is undefined (a gradient that nothing led to?)"));
  }
  T u;
  CHECK_THROWS_WITH(u.redistribute(Layout()), Equals("[redistribute] tensor 0 is undefined"));
  CHECK_THROWS_WITH(zeros_like(u), Equals("[zeros_like] operand 0 is undefined (a gradient that nothing led to?)"));
}
