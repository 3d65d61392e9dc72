#include "examples/progress.h"

#include <catch2/catch.hpp>

using namespace dtensor;

TEST_CASE("the progress line has a bar, time left, and never the terminal's last column") {
  nn::Trainer::Step s{38, 2.8313, 0.9312, 1e-3};
  CHECK(progress_line(s, 38, 100, 20113, 7.6, 100) ==
        "[==========>                 ] step 38/100  loss 2.8313  grad norm 0.931  20113 tokens/s  0:12 left");
  CHECK(progress_line({100, 2.5, 0.5, 0}, 100, 100, 900, 20, 200) ==
        "[==============================] step 100/100  loss 2.5000  grad norm 0.500  900 tokens/s  0:00 left");
  nn::Trainer::Step first{1, 2.8313, 0.9312, 1e-3};
  CHECK(progress_line(first, 1, 100, 5, 4000, 80).ends_with("  5 tokens/s  110:00:00 left"));
  CHECK(progress_line(s, 2, 100, 5, 4, 80).ends_with("  5 tokens/s  2:04 left"));  // resumed after 36 steps
  CHECK(progress_line(s, 38, 100, 20113, 7.6, 40) == "step 38/100  loss 2.8313  0:12 left");
  for (int columns = 1; columns < 150; ++columns)
    for (int64_t done : {1, 50, 99, 100})
      CHECK(progress_line(s, done, 100, 20113, 7.6, columns).size() <= size_t(std::max(1, columns - 1)));
}

TEST_CASE("in 80 columns the progress line has what matters, whole, for large numbers too") {
  nn::Trainer::Step s{123456, 12.8313, 10.9312, 1e-3};
  CHECK(progress_line(s, 123456, 1000000, 2011300, 4000, 80) ==
        "[=>         ] step 123456/1000000  loss 12.8313  2011300 tokens/s  7:53:20 left");
  CHECK(progress_line(s, 123456, 1000000, 2011300, 4000, 53) == "step 123456/1000000  loss 12.8313  7:53:20 left");
  CHECK(progress_line(s, 123456, 1000000, 2011300, 4000, 24) == "step 123456/1000000");
}

TEST_CASE("a text that a model wrote is set in, and cannot steer the terminal") {
  CHECK(set_in("Once\nupon\ta time") == "    Once\n    upon\ta time");
  CHECK(set_in("a\x1b[31mb\rc\x7f") == "    a\ufffd[31mb\ufffdc\ufffd");
  CHECK(set_in("caf\u00e9 \u0085\u009b2J \u00a0") == "    caf\u00e9 \ufffd\ufffd2J \u00a0");
}
