// The files of examples/hardware/, which are part of the library (nn/foresight/known_hardware.cpp.in).
#pragma once

#include <span>
#include <string_view>

namespace dtensor::nn {

struct KnownHardware {
  std::string_view name, json;
};
std::span<const KnownHardware> known_hardware();

}  // namespace dtensor::nn
