#include "dtensor/redistribute.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <set>

#include "dtensor/plan_cache.h"
#include "placement/redistribution.h"
#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

namespace {

// Redistributes each of `from` to each of `to` on real ranks and compares values, bits of sums and local shapes.
size_t run_all(const MeshShape& shape_of_mesh, const Shape& shape, const std::vector<Layout>& from,
               const std::vector<Layout>& to, Contribution contribution) {
  size_t world = size_t(shape_of_mesh.world());
  std::vector<std::vector<std::vector<float>>> sources(from.size()), results(from.size() * to.size());
  for (size_t i = 0; i < from.size(); ++i)
    for (size_t r = 0; r < world; ++r)
      sources[i].push_back(Source{shape_of_mesh, shape, from[i], i, contribution}.local(int(r)));
  for (auto& r : results) r.resize(world);
  launch(int(world), [&](Rank& rank) {
    DeviceMesh mesh(rank, shape_of_mesh);
    size_t r = size_t(rank.rank());
    Log log;
    Observing scope(rank, log);
    for (size_t i = 0; i < from.size(); ++i) {
      Part part = part_of(shape_of_mesh, shape, from[i], int(r));
      Shape local_shape(part.shape.begin(), part.shape.end());
      const std::vector<float>& local = sources[i][r];
      Tensor t =
          i % 2 ? scattered(rank.allocator(), local_shape, local) : tensor_of(rank.allocator(), local_shape, local);
      auto x = DistributedTensor::from_local(t, mesh, from[i], shape);
      for (size_t j = 0; j < to.size(); ++j) {
        log = {};
        DistributedTensor y = x.redistribute(to[j]);
        Layout stripped = strip_narrow_axes(shape_of_mesh, to[j]);
        check(y.layout() == stripped && y.shape() == shape, "{} is not {}", to_string(y),
              to_string(to[j], shape_of_mesh));
        check((y.id() == x.id()) == (x.layout() == stripped), "only the same layout is the same value");
        Part want = part_of(shape_of_mesh, shape, to[j], int(r));
        check(y.local().shape() == Shape(want.shape.begin(), want.shape.end()), "rank {} has {}", r,
              to_string(y.local().shape()));
        results[i * to.size() + j][r] = values<float>(y.local());
        std::vector<CollectiveKind> planned;
        for (const Step& s : plan_of(x, stripped).steps)
          if (!is_local(s.kind)) planned.push_back(collective_kind(s.kind));
        check(log.kinds == planned, "the collectives are those of the plan");
        check(log.asked_for == planned.size() && log.redistributions == (y.id() != x.id()), "observers saw it");
      }
      check(values<float>(x.local()) == local, "the source stays as it was");
    }
  });
  for (size_t i = 0; i < from.size(); ++i)
    for (size_t j = 0; j < to.size(); ++j) {
      std::string wrong =
          difference({shape_of_mesh, shape, from[i], i, contribution}, to[j], results[i * to.size() + j]);
      if (!wrong.empty())
        FAIL(to_string(shape) << " on " << to_string(shape_of_mesh) << ", " << to_string(from[i], shape_of_mesh)
                              << " to " << to_string(to[j], shape_of_mesh) << ": " << wrong);
    }
  return results.size();
}

}  // namespace

TEST_CASE("law 1: redistribution is the identity on the logical value") {
  size_t pairs = 0;
  SECTION("all pairs of layouts on one axis") {
    for (int n : {1, 2, 3, 4, 5})
      for (int dims = 0; dims <= 3; ++dims)
        for (const Shape& shape : all_shapes(dims, {0, 1, 5, 8})) {
          if (dims == 3 && n == 5) continue;
          auto layouts = all_layouts(1, dims);
          pairs += run_all(mesh_of({n}), shape, layouts, layouts, rough_contribution);
        }
    CHECK(pairs > 5000);
  }
  SECTION("all pairs of layouts and orders on two axes") {
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 2}, {2, 3}, {1, 2}})
      for (int dims = 0; dims <= 2; ++dims)
        for (const Shape& shape : all_shapes(dims, {0, 1, 5, 8})) {
          auto layouts = all_layouts(2, dims);
          pairs += run_all(mesh_of(sizes), shape, layouts, layouts, rough_contribution);
        }
    for (const Shape& shape : {Shape{5, 1, 8}, Shape{4, 5, 3}}) {
      auto layouts = all_layouts(2, 3);
      pairs += run_all(mesh_of({2, 2}), shape, layouts, layouts, rough_contribution);
    }
    CHECK(pairs > 10000);
  }
  SECTION("all reductions and changes of the reduction") {
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{3}, {4}, {2, 2}})
      for (const Shape& shape : {Shape{}, Shape{5}, Shape{4, 5}})
        for (Reduce a : all_reductions)
          for (Reduce b : all_reductions) {
            if (sizes.size() == 2 && shape.dims() == 2 && a != b && a != Reduce::sum) continue;
            int axes = int(sizes.size());
            pairs += run_all(mesh_of(sizes), shape, all_layouts(axes, shape.dims(), true, a),
                             all_layouts(axes, shape.dims(), true, b), exact_contribution);
          }
  }
  SECTION("three axes") {
    for (const Shape& shape : {Shape{5}, Shape{8}}) {
      auto layouts = all_layouts(3, 1);
      pairs += run_all(mesh_of({2, 1, 2}), shape, layouts, layouts, exact_contribution);
      pairs += run_all(mesh_of({2, 2, 2}), shape, layouts,
                       {Layout{}, Layout{Shard(0), Shard(0), Shard(0)}, Layout{Partial(), Replicate(), Shard(0)}},
                       rough_contribution);
    }
  }
}

TEST_CASE("law 1: redistribution on more ranks and dimensions", "[nightly]") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 2}, {2, 3}, {4, 2}})
    for (const Shape& shape : all_shapes(3, {1, 5, 8})) {
      auto layouts = all_layouts(2, 3);
      run_all(mesh_of(sizes), shape, layouts, layouts, rough_contribution);
    }
  for (const Shape& shape : {Shape{5, 1}, Shape{8, 8}}) {
    auto layouts = all_layouts(3, 2);
    run_all(mesh_of({2, 2, 2}), shape, layouts, layouts, rough_contribution);
  }
}

// A plan may slice a replicated axis along with a collective over another one.
TEST_CASE("law 1: axes that are sliced along with a collective") {
  MeshShape mesh = mesh_of({2, 2});
  run_all(mesh, {8, 8}, {Layout{Shard(0)}, Layout{Partial()}},
          {Layout{Replicate(), Shard(1)}, Layout{Shard(0), Shard(0)}, Layout{Shard(1), Shard(0)}}, rough_contribution);
  run_all(mesh, {3, 5, 7}, {Layout{Shard(2)}}, {Layout{Replicate(), Shard(0)}, Layout{Replicate(), Shard(1)}},
          exact_contribution);
}

// Large enough that plans reduce slices and gather last: the sum is the same tree.
TEST_CASE("law 6: large sums are the same tree whatever the plan", "[nightly]") {
  Shape shape{4, 1 << 20};
  auto rough = [](int rank, int64_t i) {
    return float(int32_t(uint32_t(i * 8 + rank) * 2654435761u) >> (i + rank) % 20);
  };
  std::vector<Log> logs(8);
  launch(8, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=4,tp=2");
    Observing scope(rank, logs[size_t(rank.rank())]);
    Tensor t(rank.allocator(), DType::f32, shape);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = rough(mesh.coordinate("dp"), i);
    auto x = DistributedTensor::from_local(t, mesh, {Partial()}, shape);
    for (const Layout& to :
         {Layout{}, Layout{Shard(0), Shard(1)}, Layout{Replicate(), Shard(0)}.with_innermost(0, 0)}) {
      DistributedTensor y = x.redistribute(to);
      Box box = y.spec().box;
      int64_t at = 0;
      for (int64_t a = box[0].begin; a < box[0].end; ++a)
        for (int64_t b = box[1].begin, i = a * shape[1] + b; b < box[1].end; ++b, ++i, ++at)
          if (y.local().data<float>()[at] != (rough(0, i) + rough(1, i)) + (rough(2, i) + rough(3, i)))
            fail("element {} of {}", i, to_string(y));
    }
  });
  CHECK(logs[0].kinds == std::vector{CollectiveKind::all_reduce, CollectiveKind::all_gather,
                                     CollectiveKind::reduce_scatter, CollectiveKind::reduce_scatter});
}

TEST_CASE("law 1: every element type keeps its bits") {
  auto run = [](auto zero, std::initializer_list<decltype(zero)> special) {
    using T = decltype(zero);
    Shape shape{5, 3};
    std::vector<T> whole(15, T(1));
    std::copy(special.begin(), special.end(), whole.begin());
    launch(4, [&](Rank& rank) {
      DeviceMesh mesh(rank, "dp=2,tp=2");
      Tensor t = tensor_of(rank.allocator(), shape, whole);
      std::vector<Layout> layouts = all_layouts(2, 2);
      for (Reduce r : {Reduce::min, Reduce::max})
        for (const Layout& l : all_layouts(2, 2, true, r))
          if (l.partial) layouts.push_back(l);
      for (const Layout& from : layouts)
        for (const Layout& to : {from, Layout{}, Layout{Shard(0), Shard(1)}, Layout{Partial(), Shard(0)},
                                 Layout{Partial(Reduce::max), Partial(Reduce::max)}}) {
          if (std::is_same_v<T, bool> && (from.partial | to.partial)) continue;
          std::vector<T> back = values<T>(DistributedTensor::distribute(t, mesh, from).redistribute(to).full_tensor());
          for (size_t i = 0; i < back.size(); ++i) {
            T got = back[i], want = whole[i];
            check(std::memcmp(&got, &want, sizeof(T)) == 0, "{} became {} from {} over {}", want, got,
                  to_string(from, mesh.shape()), to_string(to, mesh.shape()));
          }
        }
    });
  };
  run(0.f, {0.f, -0.f, INFINITY, -INFINITY, 1e-45f, 3.4e38f, -1.5f});
  run(0.0, {0.0, -0.0, double(INFINITY), -double(INFINITY), 5e-324, 1e308});
  run(int64_t(0), {0, -1, INT64_MAX, INT64_MIN, 123456789012345});
  run(false, {false, true, false});
}

TEST_CASE("a sum of bf16 is that of f32, rounded once") {
  MeshShape shape_of_mesh = MeshShape::parse("dp=2,tp=2");
  Shape shape{5, 3};
  Contribution any = [](Reduce, int, int q, int64_t e, uint64_t seed) {
    return float(std::ldexp(std::sin(double(e * 7 + q * 13) + double(seed)), int(e + 3 * q) % 9));
  };
  std::vector<Layout> layouts = all_layouts(2, 2);
  for (Reduce r : {Reduce::avg, Reduce::max})
    for (const Layout& l : all_layouts(2, 2, true, r))
      if (l.partial) layouts.push_back(l);
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, shape_of_mesh);
    for (size_t i = 0; i < layouts.size(); ++i) {
      const Layout& from = layouts[i];
      auto part = Source{shape_of_mesh, shape, from, i, any}.local(rank.rank());
      Tensor half = tensor_of(rank.allocator(), local_box(shape_of_mesh, shape, from, rank.rank()).shape(), part);
      half = half.to(DType::bf16);  // what both begin with
      auto x = DistributedTensor::from_local(half, mesh, from, shape);
      auto wide = DistributedTensor::from_local(half.to(DType::f32), mesh, from, shape);
      check(x.dtype() == DType::bf16 && x.local().dtype() == part_dtype(DType::bf16, from), "from_local");
      for (const Layout& to : layouts) {
        DistributedTensor y = x.redistribute(to), want = wide.redistribute(to);
        check(y.dtype() == DType::bf16 && y.local().dtype() == part_dtype(DType::bf16, to), "{} is {}", to_string(y),
              name(y.local().dtype()));
        std::vector<float> got = values<float>(y.full_tensor().to(DType::f32));
        check(got == values<float>(want.full_tensor().to(DType::bf16).to(DType::f32)), "{} to {}",
              to_string(from, shape_of_mesh), to_string(to, shape_of_mesh));
      }
    }
  });
}

TEST_CASE("Rank::reduce_dtype bf16 rounds contributions before they are summed, and half the bytes travel") {
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    SpecHandle spec = mesh.intern({DType::bf16, {4}, {Partial(), Partial()}});
    const float mine[] = {1 + 0x1p-9f, -1, 0, 0};  // the first is 1 in bf16
    Tensor part = tensor_of(rank.allocator(), {4}, std::vector<float>(4, mine[rank.rank()]));
    auto x = DistributedTensor::empty(mesh, spec, part);
    Log log;
    Observing scope(rank, log);
    for (DType reduce : {DType::f32, DType::bf16, DType::f32}) {
      rank.reduce_dtype = reduce;
      log = {};
      Tensor sum = x.full_tensor();
      bool wide = reduce == DType::f32;
      check(element(sum, 3) == (wide ? 0x1p-9 : 0), "the sum is {}", element(sum, 3));
      check(log.lines ==
                std::vector<std::string>{fmt::format("all_reduce(dp,tp) {}[4] dp=Partial(sum) tp=Partial(sum) to "
                                                     "dp=Replicate tp=Replicate, {} bytes",
                                                     name(reduce), wide ? 24 : 12)},
            "{}", log.lines[0]);
      check(x.redistribute("tp=Replicate").local().dtype() == reduce, "what is still to be summed lies so in memory");
    }
  });
}

TEST_CASE("several tensors are redistributed in one launch") {
  std::vector<std::vector<std::string>> wrong(4);
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    std::vector<std::string>& notes = wrong[size_t(rank.rank())];
    auto value = [&](const Shape& shape, const Layout& l, uint64_t seed) {
      Source s{mesh.shape(), shape, l, seed};
      return DistributedTensor::from_local(
          tensor_of(rank.allocator(), mesh.intern({DType::f32, shape, l})->local_shape, s.local(rank.rank())), mesh, l,
          shape);
    };
    Log log;
    Observing scope(rank, log);
    {  // of one kind: one launch, one entry per tensor
      std::vector<DistributedTensor> list;
      std::vector<Layout> to;
      for (int64_t n : {8, 5, 1, 0, 64})
        list.push_back(value({n, 3}, {Partial(), Replicate()}, 1)), to.push_back({Shard(0), Replicate()});
      auto results = redistribute(list, to);
      if (log.groups.size() != 4 || std::set(log.groups.begin(), log.groups.end()).size() != 1)
        notes.push_back("not one launch of four tensors");
      for (size_t i = 0; i < list.size(); ++i)
        if (values<float>(results[i].local()) != values<float>(list[i].redistribute(to[i]).local()))
          notes.push_back("another value in a list");
    }
    // Of all kinds: the same values as alone, and each launch is of one collective over one group.
    Random random{5};
    for (int round = 0; round < 60; ++round) {
      std::vector<DistributedTensor> list;
      std::vector<Layout> to;
      for (int i = random.below(6); i >= 0; --i) {
        Shape shape{random.below(9), 1 + random.below(5)};
        Reduce a = all_reductions[size_t(random.below(5))], b = all_reductions[size_t(random.below(5))];
        std::vector<Layout> from = all_layouts(2, 2, true, a), targets = all_layouts(2, 2, true, b);
        list.push_back(value(shape, from[size_t(random.below(int(from.size())))], random.next()));
        to.push_back(targets[size_t(random.below(int(targets.size())))]);
      }
      log = {};
      auto results = redistribute(list, to);
      std::map<uint64_t, CollectiveKind> kinds;
      for (size_t k = 0; k < log.groups.size(); ++k)
        if (kinds.emplace(log.groups[k], log.kinds[k]).first->second != log.kinds[k])
          notes.push_back("a launch of two kinds");
      size_t together = log.lines.size();
      log = {};
      for (size_t i = 0; i < list.size(); ++i) {
        DistributedTensor alone = list[i].redistribute(to[i]);
        if (values<float>(results[i].local()) != values<float>(alone.local()) || &results[i].spec() != &alone.spec())
          notes.push_back("another value in a list");
        if ((results[i].id() == list[i].id()) != (list[i].layout() == strip_narrow_axes(mesh.shape(), to[i])))
          notes.push_back("another id");
      }
      if (together != log.lines.size()) notes.push_back("other collectives in a list");
    }
  });
  for (auto& notes : wrong) CHECK(notes == std::vector<std::string>{});
  CHECK(redistribute({}, {}).empty());
}

TEST_CASE("law 8: what is predicted is what runs") {
  auto program = [](Rank& rank, Log& log) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    Observing scope(rank, log);
    for (const Shape& shape : {Shape{5, 8}, Shape{1, 4}, Shape{0, 4}})
      for (const Layout& s : all_layouts(2, 2))
        for (const Layout& t : all_layouts(2, 2, true, Reduce::max)) {
          auto x = DistributedTensor::empty(mesh, {DType::f32, shape, s});
          if (!x.is_meta()) fill(x.local_for_writing(), 1);
          DistributedTensor y = x.redistribute(t);
          check(y.is_meta() == x.is_meta() && y.local().shape() == y.spec().local_shape, "a part of {}", to_string(y));
        }
  };
  std::vector<Log> real(4);
  Log predicted;
  launch(4, [&](Rank& rank) { program(rank, real[size_t(rank.rank())]); });
  auto rank = Rank::recorded(4);
  program(*rank, predicted);
  REQUIRE(predicted.lines.size() > 400);
  for (const Log& log : real) {
    CHECK(log.lines == predicted.lines);
    CHECK(log.groups == predicted.groups);
    CHECK(log.redistributions == predicted.redistributions);
  }
}

TEST_CASE("law 7: no silent communication") {
  for (bool strict : {false, true}) {
    std::vector<std::string> errors(2);
    std::vector<Log> logs(2);
    launch(2, [&](Rank& rank) {
      DeviceMesh mesh(rank, "tp=2");
      rank.strict = strict;
      Log& log = logs[size_t(rank.rank())];
      Observing scope(rank, log);
      auto x = DistributedTensor::distribute(Tensor::of<float>({4}, {1, 2, 3, 4}), mesh, {Shard(0)});
      LabelScope op(rank, Label::Kind::op, "softmax");
      x.redistribute({Partial()}, {.asked_for = false});  // local: no bytes move
      x.redistribute({Replicate()});                      // asked for
      errors[size_t(rank.rank())] = error_of([&] { x.redistribute({Replicate()}, {.asked_for = false}); });
    });
    for (size_t r = 0; r < 2; ++r) {
      CHECK(errors[r] == (strict ? "[softmax] strict mode: all_gather of f32[4] tp=Shard(0) (8 bytes), which nobody "
                                   "asked for; bring the operand to "
                                   "tp=Replicate with redistribute() or a plan line"
                                 : ""));
      CHECK(logs[r].lines.size() == (strict ? 1 : 2));
      CHECK(logs[r].asked_for == 1);
    }
  }
}

TEST_CASE("law 9: a redistribution that cannot be is an error") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1,tp=1"), other(*rank, "tp=1");
  auto x = DistributedTensor::distribute(Tensor::of<float>({2, 2}, {1, 2, 3, 4}), mesh, {});
  auto y = DistributedTensor::distribute(Tensor::of<float>({2}, {1, 2}), other, {});
  CHECK_THROWS_WITH(x.redistribute({Shard(2)}), Equals("[redistribute] dimension 2 is out of range for 2 dimensions"));
  CHECK_THROWS_WITH(x.redistribute({Replicate(), Replicate(), Shard(0)}),
                    Equals("[redistribute] 3 placements on a mesh of 2 axes (dp=1,tp=1)"));
  CHECK_THROWS_WITH(x.redistribute(Layout{Shard(2)}),
                    Equals("[redistribute] f32[2,2] dp=Replicate tp=Replicate has no dimension 2 to shard"));
  CHECK_THROWS_WITH(x.redistribute(Layout{Replicate(), Replicate(), Shard(0)}),
                    Equals("[Layout] the layout has placements on more axes than the mesh has (dp=1,tp=1)"));
  std::vector<DistributedTensor> both{x, y};
  CHECK_THROWS_WITH(redistribute(both, std::vector<Layout>(2)),
                    Equals("[redistribute] tensors on two meshes: dp=1,tp=1 and tp=1"));
  CHECK_THROWS_WITH(redistribute(both, std::vector<Layout>(1)), Equals("[redistribute] 2 tensors and 1 layouts"));
  CHECK_THROWS_WITH(redistribute(std::vector<DistributedTensor>(1), std::vector<Layout>(1)),
                    Equals("[redistribute] tensor 0 is undefined"));
  launch(2, [](Rank& two) {
    DeviceMesh pair(two, "tp=2");
    auto counts = DistributedTensor::distribute(Tensor::of<int64_t>({2}, {1, 2}), pair, {Shard(0)});
    std::string error = error_of([&] { counts.redistribute({Partial(Reduce::avg)}); });
    check(error == "[redistribute] Partial(avg) of i64 is not supported", "{}", error);
  });
}

TEST_CASE("copies of a redistribution's handle are the same redistribution") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto x = DistributedTensor::distribute(Tensor::of<float>({4}, {1, 2, 3, 4}), mesh, {Shard(0)});
    Log log;
    Observing scope(rank, log);
    for (const Layout& to : {Layout{}, Layout{Shard(0)}}) {  // one moves, one does not
      log = {};
      Redistribution one = Redistribution::begin(std::span(&x, 1), std::span(&to, 1)), two = one;
      std::vector<DistributedTensor> a = one.finish(), b = two.finish();
      check(a.size() == 1 && b.size() == 1 && a[0].id() == b[0].id(), "the same tensors");
      check(a[0].layout() == to && (a[0].id() == x.id()) == (to == x.layout()), "in their layout");
      check(log.lines.size() == size_t(to != x.layout()) && log.redistributions == log.lines.size(), "it runs once");
      check(!one.defined() && !two.defined(), "finished");
      std::string error = error_of([&] { one.finish(); });
      check(error == "[Redistribution::finish] nothing is under way: this handle was finished, or began nothing", "{}",
            error);
    }
    check(Redistribution::begin({}, {}).finish().empty(), "of no tensors");
  });
}

TEST_CASE("a redistribution that is dropped holds nothing") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "tp=2");
    auto x = DistributedTensor::empty(mesh, {DType::f32, {1 << 16}, Layout{Shard(0)}});
    fill(x.local_for_writing(), 1);
    int64_t bytes = rank.allocator()->bytes_in_use();
    Layout to;
    for (int i = 0; i < 40; ++i) Redistribution::begin(std::span(&x, 1), std::span(&to, 1));
    x.redistribute(to);  // the ranks are still in step
    check(rank.allocator()->bytes_in_use() <= bytes + 4 * (4 << 16), "{} bytes in use, {} before",
          rank.allocator()->bytes_in_use(), bytes);
  });
}

TEST_CASE("plans are found once and bounded") {
  auto rank = Rank::recorded(1024);
  DeviceMesh mesh(*rank, "dp=1024");
  auto x = DistributedTensor::empty(mesh, {DType::f32, {8192, 8192}, Layout{Shard(0)}});
  std::shared_ptr<PlannedMove> plan = mesh.plans().find(mesh, x.spec(), Layout{Shard(1)});
  CHECK(mesh.plans().size() == 1);
  for (int i = 0; i < 3; ++i) x.redistribute({Shard(1)});
  CHECK(mesh.plans().find(mesh, x.spec(), Layout{Shard(1)}) == plan);
  CHECK(mesh.plans().size() == 1);
  for (int64_t n = 1; n < int64_t(PlanCache::capacity) + 100; ++n)
    DistributedTensor::empty(mesh, {DType::f32, {n}, Layout{Shard(0)}}).redistribute({Replicate()});
  CHECK(mesh.plans().size() == PlanCache::capacity);
}

TEST_CASE("observers see the plan of a redistribution") {
  struct Plans : Observer {
    std::vector<StepKind> kinds;
    void on_redistribute(const RedistributeEvent& e) override {
      for (const Step& s : e.plan.steps) kinds.push_back(s.kind);
    }
  } plans;
  auto rank = Rank::recorded(4);
  DeviceMesh mesh(*rank, "dp=2,tp=2");
  Observing scope(*rank, plans);
  DistributedTensor::empty(mesh, {DType::f32, {8, 8}, Layout{Shard(0)}}).redistribute({Replicate(), Shard(1)});
  CHECK(plans.kinds == std::vector{StepKind::all_gather});  // slicing along
}

TEST_CASE("law 9: a meta tensor is not moved between launched ranks") {
  auto run = [] {
    launch(2, [](Rank& rank) {
      DeviceMesh mesh(rank, "x=2");
      TensorSpec spec = parse_spec("f32[4,6] x=Shard(0)", mesh.shape());
      SpecHandle local = mesh.intern(spec);
      Tensor meta(rank.allocator(), DType::f32, local->local_shape, Device::meta);
      DistributedTensor::empty(mesh, local, meta).redistribute({Replicate()});
    });
  };
  CHECK_THROWS_WITH(run(), Catch::Contains("[all_gather] a meta tensor of 24 elements has no bytes to move between "
                                           "launched ranks: materialize() it, or run on "));
}
