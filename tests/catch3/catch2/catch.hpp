// Catch2 3 under the header and the names of Catch2 2.13, as far as our tests use them.
#pragma once
#include <catch2/catch_all.hpp>
#include <concepts>
#include <string>

using Catch::Approx;

namespace Catch {
namespace Matchers {
// In version 3, Contains looks for an element; in version 2, for a substring when given text.
template <std::convertible_to<std::string> T>
auto Contains(T&& text) {
  return ContainsSubstring(text);
}
}  // namespace Matchers

using Matchers::Contains;
using Matchers::EndsWith;
using Matchers::StartsWith;
}  // namespace Catch
