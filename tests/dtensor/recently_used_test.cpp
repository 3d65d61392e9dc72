#include "dtensor/local/recently_used.h"

#include <catch2/catch.hpp>

#include <string>

using namespace dtensor;

TEST_CASE("a bounded map drops what was not used for longest") {
  RecentlyUsed<int, std::string> map(3);
  CHECK(map.find(1) == nullptr);
  for (int i : {1, 2, 3}) map.insert(i, std::to_string(i));
  std::string* two = map.find(2);
  REQUIRE(two);
  CHECK(*map.find(1) == "1");
  map.insert(4, "4");  // 3 goes
  CHECK(map.size() == 3);
  CHECK(map.find(3) == nullptr);
  CHECK(map.find(2) == two);  // the others stay where they are
  map.insert(5, "5");
  CHECK(map.find(1) == nullptr);
  CHECK((map.find(2) && map.find(4) && map.find(5)));
}
