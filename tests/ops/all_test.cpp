#include <set>

#include "tests/ops/helpers.h"

using namespace dtensor;

TEST_CASE("every card has a name of its own, something to run, and samples") {
  std::set<std::string_view> names;
  for (const Op* op : ops::cards()) {
    INFO(op->name);
    CHECK(names.insert(op->name).second);
    CHECK((op->cpu || op->composite));
    CHECK(!op->sample.empty());
  }
}

TEST_CASE("find() gives a card by its name, and else names the nearest") {
  CHECK(&ops::find("matmul") == &ops::matmul_op);
  CHECK(&ops::find("sum") == &ops::sum_op);
  CHECK_THROWS_WITH(ops::find("matmull"), "[find] there is no op \"matmull\"; the nearest is \"matmul\"");
  CHECK_THROWS_WITH(ops::find("softmx", "explain"), Catch::StartsWith("[explain] there is no op \"softmx\""));
}
