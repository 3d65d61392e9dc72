// Tables as text, for programs and reports.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dtensor {

// Lines of columns that are two spaces apart, the first line being the heading. `align` has a character per column:
// '<' for text, '>' for numbers. Lines that are shorter end there. Errors: a line of more columns than `align` has.
std::string table(std::string_view align, const std::vector<std::vector<std::string>>& lines);

}  // namespace dtensor
