#include "ops/core/attributes.h"

#include <catch2/catch.hpp>
#include <cmath>

using namespace dtensor;
using Catch::Contains;

namespace {

enum class Mode : uint8_t { fast, exact };
std::string_view name(Mode m) { return m == Mode::fast ? "fast" : "exact"; }

struct Common {
  int64_t dim = -1;
  bool keepdim = true;
  static constexpr auto fields() { return std::tuple(field("dim", &Common::dim), field("keepdim", &Common::keepdim)); }
};
struct All : Common {
  using Base = Common;
  double eps = 1e-6;
  Shape shape = {8, 4};
  DType dtype = DType::f64;
  Mode mode = Mode::exact;
  std::string form = "none";
  std::optional<double> bound = {};
  int64_t start = 2;
  static constexpr auto fields() {
    return std::tuple_cat(Common::fields(),
                          std::tuple(field("eps", &All::eps), field("shape", &All::shape), field("dtype", &All::dtype),
                                     field("form", &All::form), field("mode", &All::mode), field("bound", &All::bound),
                                     run_time("start", &All::start)));
  }
};
struct Other {
  std::vector<int64_t> sizes = {1, 2, 3};
  static constexpr auto fields() { return std::tuple(field("sizes", &Other::sizes)); }
};

// One of them changed.
template <class T, class S>
All with(T S::*at, T value) {
  All a;
  a.*at = std::move(value);
  return a;
}

}  // namespace

TEST_CASE("attributes are a struct of any type, whose text shows all that is there") {
  Attributes a = All{};
  CHECK(a.to_string() == "dim=-1 keepdim=true eps=1e-06 shape=8,4 dtype=f64 form=none mode=exact start=2");
  CHECK(a.as<All>().eps == 1e-6);
  CHECK(a.as<Common>().dim == -1);
  Attributes copy = a, moved = std::move(copy);
  CHECK(moved.as<All>().shape == Shape{8, 4});
  moved = with(&All::form, std::string("longer than a string that is held in place"));
  copy = moved;
  CHECK(copy.as<All>().form == moved.as<All>().form);
  copy = Other{};
  CHECK(copy.as<Other>().sizes == std::vector<int64_t>{1, 2, 3});
  CHECK(Attributes().empty());
  CHECK_THROWS_WITH(a.as<Other>(), Contains("[Attributes] the call has \"dim=-1 keepdim=true") &&
                                       Contains("\", which is not what the op takes"));
  CHECK_THROWS_WITH(Attributes().as<Other>(),
                    "[Attributes] the call has no attributes, which is not what the op takes");
}

TEST_CASE("an attribute can be set by name") {
  Attributes a = All{};
  a.set("dim", int64_t(2));
  a.set("bound", 0.5);
  CHECK(a.as<All>().dim == 2);
  CHECK(a.as<All>().bound == 0.5);
  CHECK_THROWS_WITH(a.set("eps", true), Contains("[Attributes::set] \"eps=true\" does not fit into \"dim=2"));
  CHECK_THROWS_WITH(a.set("axis", int64_t(1)), Contains("[Attributes::set] \"axis=1\" does not fit into"));
  CHECK(a.is_run_time("eps"));
  CHECK(a.is_run_time("start"));
  CHECK(!a.is_run_time("dim"));
}

TEST_CASE(
    "attributes that differ in type or value have different keys, but for numbers of one class and run-time ones") {
  auto same = [](const Attributes& a, const Attributes& b) {
    bool equal = same_key(a, b.key());
    if (equal) CHECK(a.key_hash() == b.key_hash());
    CHECK(same_key(b, a.key()) == equal);
    CHECK(same_key(a.key(), b.key()) == equal);
    return equal;
  };
  CHECK(same(All{}, All{}));
  const Attributes others[] = {with(&All::dim, int64_t(1)),
                               with(&All::keepdim, false),
                               with(&All::eps, -1e-6),
                               with(&All::eps, 0.0),
                               with(&All::eps, double(INFINITY)),
                               with(&All::eps, double(NAN)),
                               with(&All::shape, Shape{4, 8}),
                               with(&All::dtype, DType::f32),
                               with(&All::form, std::string("tanh")),
                               with(&All::mode, Mode::fast),
                               with(&All::bound, std::optional<double>(0))};
  for (const Attributes& a : others) {
    INFO(a.to_string());
    CHECK(!same(All{}, a));
    CHECK(a.key_hash() != Attributes(All{}).key_hash());
  }
  CHECK(!same(All{}, Common{}));
  CHECK(!same(All{}, Attributes()));
  CHECK(!same(Other{}, Other{{1, 2}}));
  CHECK(same(Attributes(), Attributes()));

  auto eps = [](double v) { return with(&All::eps, v); };
  CHECK(same(eps(2.5), eps(1e-300)));
  CHECK(same(eps(-2.5), eps(-1e300)));
  CHECK(same(eps(0.0), eps(-0.0)));
  CHECK(same(eps(NAN), eps(-double(NAN))));
  CHECK(!same(eps(INFINITY), eps(-double(INFINITY))));
  CHECK(Attributes(eps(0.25)).key().as<All>().eps == 1);
  CHECK(Attributes(eps(-0.25)).key().as<All>().eps == -1);
  CHECK(same(with(&All::bound, std::optional<double>(3)), with(&All::bound, std::optional<double>(4))));

  CHECK(same(All{}, with(&All::start, int64_t(3))));
  CHECK(Attributes(All{}).key().as<All>().start == 0);
}

TEST_CASE("named values keep their types, and their text shows them all") {
  NamedValues v{{"dim", int64_t(-1)}, {"keepdim", true}, {"eps", 1e-6}, {"shape", std::vector<int64_t>{8, 4}}};
  v.set("dim", int64_t(2));
  CHECK(v.to_string() == "dim=2 keepdim=true eps=1e-06 shape=8,4");
  CHECK(v.has("eps"));
  CHECK(!v.has("scale"));
  CHECK(std::get<double>(*v.find("eps")) == 1e-6);
}
