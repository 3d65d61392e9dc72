#include "dtensor/comm_log.h"

#include <set>

namespace dtensor {

void CommLog::on_collective(const CollectiveEvent& e) {
  const MeshShape& mesh = e.mesh.shape();
  int group = groups_.emplace(e.group, int(groups_.size())).first->second;
  auto label = [&](Label::Kind k) { return std::string(rank_.label(k)); };
  entries_.push_back({std::string(collective_name(e.kind)), mesh.names(e.axes),
                      fmt::format("{}{}", name(e.dtype), to_string(e.shape)),
                      e.step ? to_string(e.step->from, mesh) : "", e.step ? to_string(e.step->to, mesh) : "", e.bytes,
                      group, rank_.phase, label(Label::Kind::module), label(Label::Kind::op),
                      e.reason.empty() ? label(Label::Kind::reason) : std::string(e.reason),
                      label(Label::Kind::plan_line), e.asked_for, e.peer});
}

std::string to_string(const CommLog::Entry& e) {
  std::string why = e.reason.empty() ? e.op : e.reason, how;
  if (!e.from.empty()) how = fmt::format(" {} -> {}", e.from, e.to);
  if (e.peer >= 0) how = fmt::format(" {} {}", e.collective == "receive" ? "from" : "to", e.peer);
  return fmt::format("{:8} {:14} {:5} {:>10} B  {}{}  {}{}{}{}", name(e.phase), e.collective, e.axes, e.bytes, e.tensor,
                     how, e.module, why.empty() ? "" : ": " + why, e.plan_line.empty() ? "" : " [" + e.plan_line + "]",
                     e.asked_for ? "" : " (implicit)");
}

std::map<std::string, int> count_by_kind(const std::vector<CommLog::Entry>& entries) {
  std::map<std::string, int> n;
  for (const auto& e : entries) ++n[e.collective];
  return n;
}

namespace {

std::string value(const CommLog::Entry& e, CommLog::By by) {
  using By = CommLog::By;
  switch (by) {
    case By::collective:
      return e.collective;
    case By::axes:
      return e.axes;
    case By::tensor:
      return e.tensor;
    case By::phase:
      return std::string(name(e.phase));
    case By::module:
      return e.module;
    case By::op:
      return e.op;
    case By::reason:
      return e.reason;
    case By::plan_line:
      break;
  }
  return e.plan_line;
}

constexpr const char* headings[] = {"collective", "axes", "tensor", "phase", "module", "op", "reason", "plan line"};

}  // namespace

std::vector<CommTotal> totals(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by) {
  std::vector<CommTotal> found;
  std::map<std::vector<std::string>, size_t> index;
  std::set<std::pair<size_t, int>> launches;
  for (const CommLog::Entry& e : entries) {
    std::vector<std::string> key;
    for (CommLog::By b : by) key.push_back(value(e, b));
    size_t i = index.emplace(key, found.size()).first->second;
    if (i == found.size()) found.push_back({std::move(key)});
    found[i].launches += launches.emplace(i, e.group).second;
    ++found[i].tensors;
    found[i].bytes += e.bytes;
  }
  if (by.empty() && found.empty()) found.emplace_back();
  return found;
}

std::string summary(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by) {
  std::vector<std::vector<std::string>> lines(1);
  for (CommLog::By b : by) lines[0].push_back(headings[int(b)]);
  if (by.empty()) lines[0].emplace_back();
  size_t keys = lines[0].size();
  for (const char* h : {"launches", "tensors", "bytes"}) lines[0].push_back(h);
  auto add = [&](std::vector<std::string> line, const CommTotal& t) {
    line.resize(keys);
    line.insert(line.end(), {std::to_string(t.launches), std::to_string(t.tensors), std::to_string(t.bytes)});
    lines.push_back(std::move(line));
  };
  if (!by.empty())
    for (const CommTotal& t : totals(entries, by)) add(t.key, t);
  add({"total"}, totals(entries, {})[0]);
  std::vector<size_t> width(keys + 3);
  for (const auto& line : lines)
    for (size_t c = 0; c < line.size(); ++c) width[c] = std::max(width[c], line[c].size());
  std::string text;
  for (const auto& line : lines) {
    for (size_t c = 0; c < line.size(); ++c)
      text += c < keys ? fmt::format("{:<{}}  ", line[c], width[c])
                       : fmt::format("{:>{}}{}", line[c], width[c], c + 1 < line.size() ? "  " : "\n");
  }
  return text;
}

}  // namespace dtensor
