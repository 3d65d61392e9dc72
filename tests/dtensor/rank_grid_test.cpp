#include "dtensor/comm/rank_grid.h"

#include <catch2/catch.hpp>

using namespace dtensor;

TEST_CASE("a rank grid names ranks in their order, however it was put together") {
  struct Case {
    RankGrid grid;
    std::vector<int> ranks;
  };
  std::vector<Case> cases{
      {RankGrid(), {0}},
      {RankGrid(7), {7}},
      {RankGrid::whole(1), {0}},
      {RankGrid::whole(4), {0, 1, 2, 3}},
      {RankGrid(2).with(3, 1), {2, 3, 4}},
      {RankGrid(1).with(3, 4), {1, 5, 9}},
      {RankGrid(3).with(4, -1), {3, 2, 1, 0}},
      {RankGrid(1).with(2, 8).with(2, 2), {1, 3, 9, 11}},
      {RankGrid(1).with(2, 2).with(2, 8), {1, 9, 3, 11}},
  };
  for (const Case& c : cases) {
    CHECK(c.grid.size() == int(c.ranks.size()));
    CHECK(c.grid.list() == c.ranks);
    for (size_t i = 0; i < c.ranks.size(); ++i) CHECK(c.grid.find(c.ranks[i]) == int(i));
    CHECK(c.grid.find(100) == -1);
    for (const Case& other : cases) CHECK((c.grid == other.grid) == (c.ranks == other.ranks));
  }
  CHECK(RankGrid(5).with(2, 4).with(1, 17).with(4, 1) == RankGrid(5).with(8, 1));
  CHECK(RankGrid(0).with(2, 6).with(3, 2) == RankGrid(0).with(6, 2));
  CHECK(RankGrid(0).with(2, -3).with(3, -1) == RankGrid(0).with(6, -1));
}
