// What a call fails with; "" where it does not.
#pragma once

#include <string>

#include "placement/error.h"

namespace dtensor::testing {

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace dtensor::testing
