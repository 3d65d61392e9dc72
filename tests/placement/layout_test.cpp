#include "placement/layout.h"

#include <catch2/catch.hpp>

#include <set>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

AxisList list_of(std::initializer_list<int> axes) {
  AxisList l;
  for (int a : axes) l.push_back(a);
  return l;
}

// The order of axes on one dimension, as text.
std::string order(const Layout& l, int dim) {
  std::string text;
  for (int a : l.split[size_t(dim)]) text += char('a' + a);
  return text;
}

bool every_axis_in_one_place(const Layout& l) {
  AxisSet seen = l.partial;
  for (const AxisList& list : l.split)
    for (int a : list) {
      if (has(seen, a)) return false;
      seen |= axis_bit(a);
    }
  return l.partial || l.reduce == Reduce::sum;
}

}  // namespace

TEST_CASE("law 3: one source of sizes") {
  SECTION("ranges are those of torch.chunk, nested in any order") {
    for (const std::vector<int>& sizes :
         std::vector<std::vector<int>>{{1}, {2}, {3}, {5}, {8}, {2, 2}, {4, 2}, {2, 3}, {3, 2}, {2, 3, 2}}) {
      MeshShape mesh = mesh_of(sizes);
      for (const Layout& l : all_layouts(mesh.axes(), 1, false))
        for (int64_t n : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 17, 18, 24})
          for (int r = 0; r < mesh.world(); ++r) {
            std::vector<int64_t> want = indices(mesh, n, l.split[0], r);
            Range got = local_range(mesh, n, l.split[0], r);
            REQUIRE(got.size() == int64_t(want.size()));
            REQUIRE((0 <= got.begin && got.begin <= got.end && got.end <= n));
            if (!want.empty()) REQUIRE((got.begin == want.front() && got.end == want.back() + 1));
          }
    }
  }
  SECTION("boxes are their ranges, tile the tensor, and rank 0 has the largest") {
    for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{3}, {2, 2}, {2, 3}, {2, 1, 2}}) {
      MeshShape mesh = mesh_of(sizes);
      for (int dims = 0; dims <= 3; ++dims)
        for (const Shape& shape : all_shapes(dims, {0, 1, 5, 8}))
          for (const Layout& l : all_layouts(mesh.axes(), dims)) {
            std::vector<int> holders(size_t(numel(shape)));
            int64_t largest = 0;
            for (int r = 0; r < mesh.world(); ++r) {
              Part p = part_of(mesh, shape, l, r);
              Box box = local_box(mesh, shape, l, r);
              REQUIRE(box.shape() == Shape(p.shape.begin(), p.shape.end()));
              REQUIRE(box.numel() == int64_t(p.elements.size()));
              for (int d = 0; d < dims; ++d) REQUIRE(box[d] == local_range(mesh, shape[d], l.split[size_t(d)], r));
              int64_t first = 0;
              for (int d = 0; d < dims; ++d) first = first * shape[d] + box.offset()[d];
              if (!p.elements.empty()) REQUIRE(first == p.elements[0]);
              for (int64_t e : p.elements) ++holders[size_t(e)];
              largest = std::max(largest, box.numel());
            }
            REQUIRE(local_box(mesh, shape, l, 0).numel() == largest);
            REQUIRE(largest_part(mesh, shape, l) == largest);
            for (int h : holders) REQUIRE(h == mesh.product(mesh.all() & ~l.sharded()));
          }
    }
  }
  SECTION("named examples") {
    auto sizes = [](const MeshShape& mesh, int64_t n, const AxisList& list) {
      std::vector<int64_t> s;
      for (int r = 0; r < mesh.world(); ++r) s.push_back(local_range(mesh, n, list, r).size());
      return s;
    };
    CHECK(sizes(MeshShape::parse("dp=4,tp=2"), 18, list_of({0, 1})) == std::vector<int64_t>{3, 2, 3, 2, 3, 2, 2, 1});
    CHECK(sizes(MeshShape::parse("tp=4"), 5, list_of({0})) == std::vector<int64_t>{2, 2, 1, 0});
    CHECK(sizes(MeshShape::parse("dp=2,tp=2"), 5, list_of({0, 1})) == std::vector<int64_t>{2, 1, 1, 1});
    CHECK(sizes(MeshShape::parse("tp=3"), 1, list_of({0})) == std::vector<int64_t>{1, 0, 0});
    CHECK(largest_piece(0, 4) == 0);
    CHECK(largest_piece(8, 4) == 2);
    CHECK(largest_piece(9, 4) == 3);
  }
}

TEST_CASE("boxes intersect") {
  Box whole = whole_box({4, 6}), a = whole, b = whole;
  CHECK(whole.shape() == Shape{4, 6});
  CHECK(whole.offset() == Shape{0, 0});
  a[0] = {1, 3}, b[0] = {2, 4}, b[1] = {5, 6};
  Box both = intersection(a, b);
  CHECK(both[0] == Range{2, 3});
  CHECK(both[1] == Range{5, 6});
  CHECK(intersection(whole, a) == a);
  b[0] = {3, 4};
  CHECK(intersection(a, b).numel() == 0);
  b[0] = {0, 0};
  CHECK(intersection(a, b).numel() == 0);
  CHECK(whole_box({}).numel() == 1);
}

TEST_CASE("law 4: sharding order is explicit") {
  MeshShape mesh = MeshShape::parse("dp=2,tp=4");
  Layout in_order{Shard(0), Shard(0)}, outside_in = Layout{Replicate(), Shard(0)}.with_innermost(0, 0);
  CHECK(order(in_order, 0) == "ab");
  CHECK(order(outside_in, 0) == "ba");
  CHECK(in_order != outside_in);
  CHECK(in_order.in_mesh_order());
  CHECK_FALSE(outside_in.in_mesh_order());
  for (int a = 0; a < 2; ++a) CHECK(in_order[a] == outside_in[a]);  // the placements are the same, the layouts are not
  CHECK(local_range(mesh, 16, in_order.split[0], 1) == Range{2, 4});
  CHECK(local_range(mesh, 16, outside_in.split[0], 1) == Range{4, 6});

  SECTION("placements by axis mean mesh order") {
    Layout l{Shard(1), Shard(0), Shard(1), Partial(Reduce::max), Shard(1), Replicate()};
    CHECK(order(l, 1) == "ace");
    CHECK(order(l, 0) == "b");
    CHECK(l.partial == axis_bit(3));
    CHECK(l.reduce == Reduce::max);
    Placement want[] = {Shard(1), Shard(0), Shard(1), Partial(Reduce::max), Shard(1), Replicate()};
    for (int a = 0; a < 6; ++a) CHECK(l[a] == want[a]);
    CHECK(l.sharded() == 0b010111);
  }
  SECTION("with() keeps what is there and inserts in mesh order") {
    Layout l = Layout{}.with(2, Shard(0)).with(0, Shard(0)).with(1, Shard(0));
    CHECK(order(l, 0) == "abc");
    CHECK(order(outside_in.with(0, Shard(0)), 0) == "ba");  // already so
    CHECK(order(outside_in.with(2, Shard(0)), 0) == "bac");
    CHECK(outside_in.with(1, Replicate()) == Layout{Shard(0)});
    CHECK(outside_in.with(MeshShape::parse("a=2,b=2"), "b", Replicate()) == Layout{Shard(0)});
    CHECK(outside_in.with(0, Shard(1)) == Layout{Shard(1), Shard(0)});
    CHECK(outside_in.with_innermost(1, 0) == in_order);
  }
  SECTION("a reduction may be replaced") {
    CHECK((Layout{Partial(), Replicate()}.with(0, Partial(Reduce::avg))) == Layout{Partial(Reduce::avg)});
  }
  SECTION("every layout tells its axes apart") {
    for (int axes = 1; axes <= 3; ++axes)
      for (int dims = 0; dims <= 3; ++dims)
        for (const Layout& l : all_layouts(axes, dims)) {
          REQUIRE(every_axis_in_one_place(l));
          std::vector<Placement> placements;
          for (int a = 0; a < axes; ++a) placements.push_back(l[a]);
          REQUIRE(l.in_mesh_order() == (Layout(std::span<const Placement>(placements)) == l));
          REQUIRE(l.is_replicated() == (l == Layout{}));
          for (int a = 0; a < axes; ++a) {
            REQUIRE(l.with(a, l[a]) == l);
            for (int d = -2; d < dims; ++d) {
              Placement p = d == -2 ? Replicate() : d == -1 ? Partial() : Shard(d);
              Layout m = l.with(a, p);
              REQUIRE(every_axis_in_one_place(m));
              REQUIRE(m[a] == p);
              for (int b = 0; b < axes; ++b) REQUIRE((b == a || m[b] == l[b]));
            }
            for (int d = 0; d < dims; ++d) {
              Layout m = l.with_innermost(a, d);
              REQUIRE(every_axis_in_one_place(m));
              REQUIRE((m[a] == Shard(d) && order(m, d).back() == 'a' + a));
            }
          }
        }
  }
}

TEST_CASE("a layout's code is its own") {
  std::set<uint64_t> codes;
  size_t count = 0;
  for (Reduce r : all_reductions)
    for (const Layout& l : all_layouts(4, 3, true, r))
      if (r == Reduce::sum || l.partial) codes.insert(l.code()), ++count;
  CHECK(codes.size() == count);
  CHECK(Layout{}.code() == 0);
  Layout last = Layout{}.with(5, Shard(7));
  CHECK(codes.count(last.code()) == 0);
  CHECK(last.with(4, Shard(7)).code() != last.with_innermost(4, 7).code());
}

TEST_CASE("negative dimensions count from the back") {
  MeshShape mesh = MeshShape::parse("dp=2,tp=4");
  auto normal = [&](int dims, std::vector<Placement> p) { return normalize("f", mesh, dims, p); };
  CHECK(normal(3, {Shard(-1), Shard(-3)}) == Layout{Shard(2), Shard(0)});
  CHECK(normal(1, {Shard(-1), Shard(0)}) == Layout{Shard(0), Shard(0)});
  CHECK(normal(0, {}) == Layout{});
}

TEST_CASE("axes of one rank hold the whole whatever was asked for") {
  MeshShape mesh = mesh_of({1, 2, 1, 3});
  CHECK(strip_narrow_axes(mesh, {Partial(Reduce::max), Replicate(), Shard(0), Replicate()}) == Layout{});
  CHECK(strip_narrow_axes(mesh, {Shard(0), Shard(0), Shard(0), Shard(0)}) ==
        Layout{Replicate(), Shard(0), Replicate(), Shard(0)});
  for (const Layout& l : all_layouts(4, 2)) {
    Layout m = strip_narrow_axes(mesh, l);
    REQUIRE(every_axis_in_one_place(m));
    REQUIRE(strip_narrow_axes(mesh, m) == m);
    for (int a : {1, 3}) REQUIRE(m[a] == l[a]);
    for (int a : {0, 2}) REQUIRE(m[a] == Replicate());
    for (int r = 0; r < mesh.world(); ++r) REQUIRE(local_box(mesh, {5, 8}, m, r) == local_box(mesh, {5, 8}, l, r));
  }
}
