#include "placement/visualize.h"

#include <map>

namespace dtensor {
namespace {

constexpr size_t page_width = 80;

using Ranks = std::vector<int>;
using Position = std::vector<std::pair<int64_t, int64_t>>;  // a range per dimension; all empty ones are one, the last
constexpr std::pair<int64_t, int64_t> nothing{INT64_MAX, INT64_MAX};
using Picture = std::map<Position, Ranks>;

Picture picture_of(const TensorSpec& spec, const Layout& layout, const MeshShape& mesh) {
  Picture picture;
  for (int r = 0; r < mesh.world(); ++r) {
    Box box = local_box(mesh, spec.shape, layout, r);
    Position at;
    for (int d = 0; d < box.dims; ++d) at.push_back(box[d].size() ? std::pair(box[d].begin, box[d].end) : nothing);
    picture[at].push_back(r);
  }
  return picture;
}

std::string heading(std::pair<int64_t, int64_t> range) {
  return range == nothing ? "empty" : fmt::format("{}:{}", range.first, range.second);
}

// "0-3,8"
std::string runs(const Ranks& ranks) {
  std::string text;
  for (size_t i = 0, end; i < ranks.size(); i = end) {
    for (end = i + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    if (end - i == 2) --end;  // two are no run
    text += fmt::format("{}{}", i ? "," : "", ranks[i]);
    if (end - i > 1) text += fmt::format("-{}", ranks[end - 1]);
  }
  return text;
}

// "0,4", or "sum(0; 4)" where each holds a contribution.
std::string holders(const Ranks& ranks, const Layout& layout, const MeshShape& mesh) {
  if (!layout.partial) return runs(ranks);
  std::map<int, Ranks> contributions;
  for (int r : ranks) contributions[mesh.index_in(r, layout.partial)].push_back(r);
  std::string text;
  for (const auto& [index, same] : contributions) text += (text.empty() ? "" : "; ") + runs(same);
  return fmt::format("{}({})", name(layout.reduce), text);
}

using Table = std::vector<std::vector<std::string>>;  // the first row and column are headings

Table table_of(const Picture& picture, int dims, const Layout& layout, const MeshShape& mesh) {
  std::map<std::pair<int64_t, int64_t>, size_t> rows, columns;
  auto row_of = [&](const Position& p) { return dims > 1 ? p[0] : nothing; };
  auto column_of = [&](const Position& p) { return dims > 0 ? p.back() : nothing; };
  for (const auto& [at, ranks] : picture) rows[row_of(at)], columns[column_of(at)];
  Table table(rows.size() + 1, std::vector<std::string>(columns.size() + 1));
  size_t next = 0;
  for (auto& [range, i] : rows) i = ++next, table[i][0] = dims > 1 ? heading(range) : "";
  next = 0;
  for (auto& [range, i] : columns) i = ++next, table[0][i] = dims > 0 ? heading(range) : "";
  for (const auto& [at, ranks] : picture)
    table[rows[row_of(at)]][columns[column_of(at)]] = holders(ranks, layout, mesh);
  return table;
}

std::string grid(const Table& table, const std::vector<size_t>& widths) {
  auto trimmed = [](std::string line) { return line.substr(0, line.find_last_not_of(' ') + 1); };
  std::string heads = fmt::format("{:{}} ", "", widths[0]), rule = fmt::format("{:{}} +", "", widths[0]), body;
  for (size_t c = 1; c < widths.size(); ++c) {
    heads += fmt::format(" {:^{}} ", table[0][c], widths[c]) + " ";
    rule += std::string(widths[c] + 2, '-') + "+";
  }
  for (size_t r = 1; r < table.size(); ++r) {
    body += fmt::format("{:>{}} |", table[r][0], widths[0]);
    for (size_t c = 1; c < widths.size(); ++c) body += fmt::format(" {:^{}} |", table[r][c], widths[c]);
    body += "\n" + rule + "\n";
  }
  heads = trimmed(" " + heads);
  return (heads.empty() ? "" : heads + "\n") + rule + "\n" + body;
}

std::string list(const Picture& picture, const Layout& layout, const MeshShape& mesh) {
  std::vector<std::pair<std::string, std::string>> lines;
  size_t width = 0;
  for (const auto& [at, ranks] : picture) {
    std::string box;
    for (auto range : at) box += (box.empty() ? "[" : ", ") + heading(range);
    lines.emplace_back(box + "]", holders(ranks, layout, mesh));
    width = std::max(width, lines.back().first.size());
  }
  std::string text;
  for (const auto& [box, ranks] : lines) text += fmt::format("{:{}}  {}\n", box, width, ranks);
  return text;
}

}  // namespace

std::string visualize(const TensorSpec& spec, const MeshShape& mesh) {
  Layout layout = strip_narrow_axes(mesh, spec.layout);
  int dims = spec.shape.dims();
  for (int d = dims; d < max_dims; ++d)
    check(!layout.split[size_t(d)].count, "[visualize] {} has no dimension {}", to_string(spec, mesh), d);
  Picture picture = picture_of(spec, layout, mesh);
  if (dims > 2) return list(picture, layout, mesh);
  Table table = table_of(picture, dims, layout, mesh);
  std::vector<size_t> widths(table[0].size());
  size_t width = 2;
  for (size_t c = 0; c < widths.size(); ++c) {
    for (const auto& row : table) widths[c] = std::max(widths[c], row[c].size());
    width += c ? widths[c] + 3 : widths[c];
  }
  return width > page_width && dims > 0 ? list(picture, layout, mesh) : grid(table, widths);
}

}  // namespace dtensor
