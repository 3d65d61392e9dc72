// The nearest name to a mistyped one, for errors.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace dtensor {

// Levenshtein's edit distance.
inline size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t(0));
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      size_t replace = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, replace});
    }
  }
  return row.back();
}

// Whether one may be a slip for the other: at most a third of the letters differ, or one is a part of the other.
inline bool near(std::string_view a, std::string_view b) {
  if (a.size() > b.size()) std::swap(a, b);
  return edit_distance(a, b) * 3 <= b.size() || (a.size() >= 3 && b.find(a) != b.npos);
}

// The one of `names` that is near and has the least distance, the first among equals; "" where none is near.
inline std::string nearest(std::string_view name, const std::vector<std::string>& names) {
  const std::string* best = nullptr;
  for (const std::string& n : names)
    if (near(name, n) && (!best || edit_distance(name, n) < edit_distance(name, *best))) best = &n;
  return best ? *best : "";
}

// For the end of an error: `; the nearest is "steps"`, or nothing.
inline std::string nearest_hint(std::string_view name, const std::vector<std::string>& names) {
  std::string found = nearest(name, names);
  return found.empty() ? "" : "; the nearest is \"" + found + "\"";
}

}  // namespace dtensor
