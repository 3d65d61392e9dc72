// Where a tensor's bytes are.
#pragma once

#include <cstdint>
#include <string_view>

namespace dtensor {

// `meta` has shapes and no bytes: models are built and plans are applied on it, and dry runs run on it.
enum class Device : uint8_t { cpu, meta, cuda };

constexpr std::string_view name(Device d) {
  constexpr std::string_view names[] = {"cpu", "meta", "cuda"};
  return names[int(d)];
}

}  // namespace dtensor
