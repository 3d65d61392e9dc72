#include "placement/shape.h"

#include <fmt/format.h>

namespace dtensor {

std::string to_string(const Shape& s) { return fmt::format("[{}]", fmt::join(s.begin(), s.end(), ",")); }

}  // namespace dtensor
