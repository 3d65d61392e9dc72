#include "dtensor/table.h"

#include "placement/error.h"

namespace dtensor {

std::string table(std::string_view align, const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> width(align.size());
  for (const auto& line : lines) {
    check(line.size() <= align.size(), "[table] a line of {} columns, of which {} are aligned", line.size(),
          align.size());
    for (size_t c = 0; c < line.size(); ++c) width[c] = std::max(width[c], line[c].size());
  }
  std::string text;
  for (const auto& line : lines) {
    for (size_t c = 0; c < line.size(); ++c) {
      std::string space(width[c] - line[c].size(), ' ');
      text += align[c] == '>' ? space + line[c] : line[c] + space;
      text += "  ";
    }
    text.erase(text.find_last_not_of(' ') + 1) += '\n';
  }
  return text;
}

}  // namespace dtensor
