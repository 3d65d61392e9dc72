#include "placement/error.h"

#include <algorithm>

namespace dtensor {

void throw_error(fmt::string_view text, fmt::format_args args) { throw Error(fmt::vformat(text, args)); }

fmt::format_context::iterator write_text(fmt::string_view text, fmt::format_context& context) {
  return std::copy(text.begin(), text.end(), context.out());
}

}  // namespace dtensor
