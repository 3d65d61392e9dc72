#include "dtensor/agree.h"

#include <catch2/catch.hpp>

#include "dtensor/comm_log.h"
#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

TEST_CASE("law 9: an error of some ranks is agreed on by all, the first rank's") {
  struct Case {
    const char* mesh;
    std::vector<int> failing;
    int first;  // -1: none
  };
  const std::string longest(1000, 'x');
  for (const std::string& text : {std::string("there is no file"), std::string("12345678"), std::string(), longest})
    for (const Case& c : std::vector<Case>{{"dp=4", {1}, 1},
                                           {"dp=4", {}, -1},
                                           {"dp=4", {0, 1, 2, 3}, 0},
                                           {"dp=2,tp=2", {2, 3}, 2},
                                           {"dp=1,tp=3", {2}, 2},
                                           {"dp=1", {0}, 0},
                                           {"dp=1", {}, -1}}) {
      MeshShape shape = MeshShape::parse(c.mesh);
      std::vector<std::string> errors{size_t(shape.world())};
      std::vector<int> ran(errors.size());
      launch(shape.world(), [&](Rank& rank) {
        DeviceMesh mesh(rank, shape);
        for (int again = 0; again < 2; ++again)  // no rank is left behind
          errors[size_t(rank.rank())] = error_of([&] {
            agree_on_error(mesh, [&] {
              ++ran[size_t(rank.rank())];
              for (int r : c.failing)
                if (r == rank.rank()) throw Error(text + std::to_string(r));
            });
          });
      });
      for (int r = 0; r < shape.world(); ++r) {
        INFO(c.mesh << ", rank " << r);
        CHECK(ran[size_t(r)] == 2);
        std::string cause = text + std::to_string(c.first);
        CHECK(errors[size_t(r)] == (c.first < 0    ? ""
                                    : r == c.first ? cause
                                                   : fmt::format("rank {} failed: {}", c.first, cause)));
      }
    }
}

TEST_CASE("law 9: agreement among some ranks, on whatever was thrown") {
  std::vector<std::string> errors(4);
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2"), tp = mesh["tp"];
    try {
      agree_on_error(tp, [&] {
        if (rank.rank() == 0) throw 42;
        if (rank.rank() == 3) throw std::out_of_range("too far");
      });
    } catch (const std::out_of_range& e) {
      errors[size_t(rank.rank())] = fmt::format("its own: {}", e.what());
    } catch (int e) {
      errors[size_t(rank.rank())] = fmt::format("its own: {}", e);
    } catch (const Error& e) {
      errors[size_t(rank.rank())] = e.what();
    }
  });
  CHECK(errors == std::vector<std::string>{"its own: 42",
                                           "rank 0 failed: something that is no std::exception was thrown",
                                           "rank 1 failed: too far", "its own: too far"});
}

TEST_CASE("law 8: a dry run of an agreement shows its collective") {
  auto program = [](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    CommLog log(rank);
    agree_on_error(mesh, [] {});
    return log.entries();
  };
  std::vector<CommLog::Entry> ran;
  launch(4, [&](Rank& rank) {
    auto entries = program(rank);
    if (rank.rank() == 0) ran = entries;
  });
  auto rank = Rank::recorded(4);
  auto predicted = program(*rank);
  CHECK(predicted == ran);
  REQUIRE(ran.size() == 1);
  CHECK(ran[0].reason == "agreement on errors");
  DeviceMesh mesh(*rank, "dp=2,tp=2");
  CHECK_THROWS_WITH(agree_on_error(mesh, [] { throw Error("it does not fit"); }), Equals("it does not fit"));
}
