#include "ops/attributes.h"

#include <catch2/catch.hpp>

using namespace dtensor;
using Catch::Contains;

TEST_CASE("attributes keep their types, and their text shows them all") {
  Attributes a{{"dim", int64_t(-1)},
               {"keepdim", true},
               {"eps", 1e-6},
               {"shape", std::vector<int64_t>{8, 4}},
               {"dtype", DType::f64}};
  CHECK(a.to_string() == "dim=-1 keepdim=true eps=1e-06 shape=8,4 dtype=f64");
  CHECK(a.get<int64_t>("dim") == -1);
  CHECK(a.get<double>("eps") == 1e-6);
  CHECK(a.get<double>("scale", 2.0) == 2.0);
  CHECK(!a.has("scale"));
  CHECK_THROWS_WITH(a.get<bool>("causal"), Contains("[attributes] \"causal\" is missing in \"dim=-1 keepdim=true"));
  CHECK_THROWS_WITH(a.get<bool>("dim"), Contains("[attributes] \"dim\" has another type than the op needs: -1"));
  a.set("dim", int64_t(2));
  CHECK(a.get<int64_t>("dim") == 2);
  CHECK(a.list().size() == 5);
}

TEST_CASE("attributes that differ in name, type or value are different calls") {
  auto one = [](AttributeValue v, const char* name = "x") { return Attributes{{name, v}}; };
  CHECK(one(1.5) == one(1.5));
  CHECK(one(1.5).hash() == one(1.5).hash());
  for (const Attributes& other : {one(2.5), one(int64_t(1)), one(true), one(DType::f32), one(1.5, "y"),
                                  one(std::vector<int64_t>{1}), Attributes()}) {
    CHECK(other != one(1.5));
    CHECK(other.hash() != one(1.5).hash());
  }
  CHECK(one(int64_t(1)) != one(true));
  CHECK(one(std::vector<int64_t>{1, 2}).hash() != one(std::vector<int64_t>{2, 1}).hash());
}
