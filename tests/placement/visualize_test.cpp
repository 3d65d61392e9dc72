#include "placement/visualize.h"

#include <catch2/catch.hpp>

#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

std::string picture(const char* mesh, const char* spec) {
  MeshShape m = MeshShape::parse(mesh);
  return "\n" + visualize(parse_spec(spec, m), m);
}

}  // namespace

TEST_CASE("pictures of layouts") {
  struct Case {
    const char *mesh, *spec, *want;
  };
  for (const Case& c : std::vector<Case>{
           {"dp=2,tp=4", "f32[] tp=Partial", R"(
 +-------------------------+
 | sum(0,4; 1,5; 2,6; 3,7) |
 +-------------------------+
)"},
           {"tp=4", "f32[] tp=Replicate", R"(
 +-----+
 | 0-3 |
 +-----+
)"},
           {"tp=4", "f32[5] tp=Shard(0)", R"(
   0:2   2:4   4:5   empty
 +-----+-----+-----+-------+
 |  0  |  1  |  2  |   3   |
 +-----+-----+-----+-------+
)"},
           {"tp=4", "f32[0] tp=Shard(0)", R"(
   empty
 +-------+
 |  0-3  |
 +-------+
)"},
           {"dp=4,tp=2", "f32[18] dp=Shard(0) tp=Shard(0)", R"(
   0:3   3:5   5:8   8:10   10:13   13:15   15:17   17:18
 +-----+-----+-----+------+-------+-------+-------+-------+
 |  0  |  1  |  2  |  3   |   4   |   5   |   6   |   7   |
 +-----+-----+-----+------+-------+-------+-------+-------+
)"},
           {"dp=2,tp=4", "f32[16] tp=Shard(0) dp=Shard(0)", R"(
   0:2   2:4   4:6   6:8   8:10   10:12   12:14   14:16
 +-----+-----+-----+-----+------+-------+-------+-------+
 |  0  |  4  |  1  |  5  |  2   |   6   |   3   |   7   |
 +-----+-----+-----+-----+------+-------+-------+-------+
)"},
           {"dp=2,tp=4", "f32[8,16]", R"(
      0:16
    +------+
0:8 | 0-7  |
    +------+
)"},
           {"dp=2,tp=4", "f32[8,16] dp=Shard(0) tp=Shard(1)", R"(
      0:4   4:8   8:12   12:16
    +-----+-----+------+-------+
0:4 |  0  |  1  |  2   |   3   |
    +-----+-----+------+-------+
4:8 |  4  |  5  |  6   |   7   |
    +-----+-----+------+-------+
)"},
           {"dp=2,tp=4", "f32[5,16] dp=Replicate tp=Shard(0)", R"(
        0:16
      +------+
  0:2 | 0,4  |
      +------+
  2:4 | 1,5  |
      +------+
  4:5 | 2,6  |
      +------+
empty | 3,7  |
      +------+
)"},
           {"dp=2,tp=4", "f32[8,4096] dp=Partial tp=Shard(1)", R"(
       0:1024     1024:2048   2048:3072   3072:4096
    +-----------+-----------+-----------+-----------+
0:8 | sum(0; 4) | sum(1; 5) | sum(2; 6) | sum(3; 7) |
    +-----------+-----------+-----------+-----------+
)"},
           {"dp=2,tp=4", "f32[8,16] dp=Shard(0) tp=Partial(max)", R"(
           0:16
    +-----------------+
0:4 | max(0; 1; 2; 3) |
    +-----------------+
4:8 | max(4; 5; 6; 7) |
    +-----------------+
)"},
           {"dp=2,tp=4", "f32[8,16] dp=Replicate tp=Partial(avg)", R"(
               0:16
    +-------------------------+
0:8 | avg(0,4; 1,5; 2,6; 3,7) |
    +-------------------------+
)"},
           {"dp=2,tp=2,pp=2", "f32[4,4] dp=Shard(0) tp=Shard(1) pp=Shard(0)", R"(
      0:2   2:4
    +-----+-----+
0:1 |  0  |  2  |
    +-----+-----+
1:2 |  1  |  3  |
    +-----+-----+
2:3 |  4  |  6  |
    +-----+-----+
3:4 |  5  |  7  |
    +-----+-----+
)"},
           {"dp=2,tp=4", "f32[2,8,3] dp=Shard(0) tp=Shard(1)", R"(
[0:1, 0:2, 0:3]  0
[0:1, 2:4, 0:3]  1
[0:1, 4:6, 0:3]  2
[0:1, 6:8, 0:3]  3
[1:2, 0:2, 0:3]  4
[1:2, 2:4, 0:3]  5
[1:2, 4:6, 0:3]  6
[1:2, 6:8, 0:3]  7
)"},
           {"dp=2,tp=4", "f32[2,5,3] dp=Partial tp=Shard(1)", R"(
[0:2, 0:2, 0:3]    sum(0; 4)
[0:2, 2:4, 0:3]    sum(1; 5)
[0:2, 4:5, 0:3]    sum(2; 6)
[0:2, empty, 0:3]  sum(3; 7)
)"},
           {"dp=1,tp=2", "f32[4] dp=Partial tp=Shard(0)", R"(
   0:2   2:4
 +-----+-----+
 |  0  |  1  |
 +-----+-----+
)"},
           {"tp=16", "f32[1048576] tp=Shard(0)", R"(
[0:65536]         0
[65536:131072]    1
[131072:196608]   2
[196608:262144]   3
[262144:327680]   4
[327680:393216]   5
[393216:458752]   6
[458752:524288]   7
[524288:589824]   8
[589824:655360]   9
[655360:720896]   10
[720896:786432]   11
[786432:851968]   12
[851968:917504]   13
[917504:983040]   14
[983040:1048576]  15
)"},
       }) {
    INFO(c.mesh << ": " << c.spec);
    CHECK(picture(c.mesh, c.spec) == c.want);
  }
}

TEST_CASE("every rank is in a picture once") {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{3}, {2, 3}, {2, 2, 2}})
    for (int dims = 0; dims <= 3; ++dims)
      for (const Shape& shape : all_shapes(dims, {0, 1, 5}))
        for (const Layout& l : all_layouts(int(sizes.size()), dims)) {
          MeshShape mesh = mesh_of(sizes);
          std::string text = visualize({DType::f32, shape, l}, mesh);
          REQUIRE(text.back() == '\n');
          size_t width = 0;
          for (size_t at = 0, end; at < text.size(); at = end + 1) {
            end = text.find('\n', at);
            width = std::max(width, end - at);
            REQUIRE((end == at || text[end - 1] != ' '));
          }
          REQUIRE(width <= 80);
          REQUIRE((text.find("empty") != std::string::npos) == [&] {
            for (int r = 0; r < mesh.world(); ++r)
              if (local_box(mesh, shape, l, r).numel() == 0) return true;
            return false;
          }());
        }
}
