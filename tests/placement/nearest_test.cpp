#include "placement/nearest.h"

#include <catch2/catch.hpp>

using namespace dtensor;

TEST_CASE("the nearest name is one that may have been meant, or none") {
  struct Case {
    const char* name;
    std::vector<std::string> names;
    const char* nearest;
  };
  const Case cases[] = {
      {"stepz", {"lr", "steps", "seed"}, "steps"},
      {"matmull", {"mul", "matmul"}, "matmul"},
      {"axes", {"axis", "plan"}, "axis"},
      {"layers.*", {"lm_head", "model.layers.*"}, "model.layers.*"},  // a part of it
      {"reshard", {"axis", "reshard_after_forward"}, "reshard_after_forward"},
      {"embedding_rowwise", {"colwise", "rowwise"}, "rowwise"},
      {"abc", {"abd", "abe"}, "abd"},  // the first among equals
      {"abc", {"abc", "abd"}, "abc"},
      {"grad-accum", {"dry-run", "batch-size", "data"}, ""},
      {"checkpoint-dir", {"weight-decay", "config", "clip"}, ""},
      {"ab", {"cd", "a"}, ""},
      {"", {"a"}, ""},
      {"x", {}, ""},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    CHECK(nearest(c.name, c.names) == c.nearest);
    CHECK(nearest_hint(c.name, c.names) == (*c.nearest ? "; the nearest is \"" + std::string(c.nearest) + "\"" : ""));
  }
}
