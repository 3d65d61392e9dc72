#include "ops/attributes.h"

#include <catch2/catch.hpp>
#include <cmath>

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

TEST_CASE(
    "attributes that differ in name, type or value have different keys, but for numbers of one class and run-time "
    "integers") {
  auto one = [](AttributeValue v, const char* name = "x") { return Attributes{{name, v}}; };
  auto same = [](const Attributes& a, const Attributes& b, Attributes::Names run_time = {}) {
    bool equal = a.has_key(b.key(run_time), run_time);
    if (equal) CHECK(a.key_hash(run_time) == b.key_hash(run_time));
    CHECK(b.has_key(a.key(run_time), run_time) == equal);
    return equal;
  };
  CHECK(same(one(1.5), one(1.5)));
  for (const Attributes& other :
       {one(-1.5), one(0.0), one(double(INFINITY)), one(double(NAN)), one(int64_t(1)), one(true), one(DType::f32),
        one(1.5, "y"), one(std::vector<int64_t>{1}), Attributes(), Attributes{{"x", 1.5}, {"y", 1.5}}}) {
    CHECK(!same(one(1.5), other));
    CHECK(other.key_hash({}) != one(1.5).key_hash({}));
  }
  CHECK(!same(one(int64_t(1)), one(true)));
  CHECK(!same(one(int64_t(1)), one(int64_t(2))));
  CHECK(one(std::vector<int64_t>{1, 2}).key_hash({}) != one(std::vector<int64_t>{2, 1}).key_hash({}));

  CHECK(same(one(2.5), one(1e-300)));
  CHECK(same(one(-2.5), one(-1e300)));
  CHECK(same(one(0.0), one(-0.0)));
  CHECK(same(one(double(NAN)), one(-double(NAN))));
  CHECK(!same(one(double(INFINITY)), one(-double(INFINITY))));
  CHECK(one(0.25).key({}).get<double>("x") == 1);
  CHECK(one(-0.25).key({}).get<double>("x") == -1);

  const std::string_view names[] = {"start"};
  Attributes a{{"dim", int64_t(1)}, {"start", int64_t(2)}}, b{{"dim", int64_t(1)}, {"start", int64_t(3)}};
  CHECK(!same(a, b));
  CHECK(same(a, b, names));
  CHECK(!same(a, Attributes{{"dim", int64_t(0)}, {"start", int64_t(2)}}, names));
  CHECK(!a.key(names).has("start"));
}
