// Where a tensor's bytes are.
#pragma once

#include <cstdint>
#include <string_view>

namespace dtensor {

// `meta` has shapes and no bytes: models are built and plans are applied on it, and dry runs run on it.
enum class Device : uint8_t { cpu, meta };

constexpr std::string_view name(Device d) { return d == Device::cpu ? "cpu" : "meta"; }

}  // namespace dtensor
