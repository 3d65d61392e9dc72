// Every test case begins with the emulator as at the start.
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <catch2/catch.hpp>

#include "tests/emulator/emulator.h"

namespace {
struct Reset : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;
  void testCaseStarting(const Catch::TestCaseInfo&) override { emulator::reset(); }
};
CATCH_REGISTER_LISTENER(Reset)
}  // namespace
