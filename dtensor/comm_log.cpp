#include "dtensor/comm_log.h"

namespace dtensor {

void CommLog::on_collective(const CollectiveEvent& e) {
  const MeshShape& mesh = e.mesh.shape();
  int group = groups_.emplace(e.group, int(groups_.size())).first->second;
  auto label = [&](Label::Kind k) { return std::string(rank_.label(k)); };
  entries_.push_back({std::string(collective_name(e.step.kind)), mesh.names(e.step.axes),
                      fmt::format("{}{}", name(e.tensor.dtype), to_string(e.tensor.shape)),
                      to_string(e.step.from, mesh), to_string(e.step.to, mesh), e.step.bytes, group, rank_.phase,
                      label(Label::Kind::module), label(Label::Kind::op),
                      e.reason.empty() ? label(Label::Kind::reason) : std::string(e.reason),
                      label(Label::Kind::plan_line), e.asked_for});
}

std::string to_string(const CommLog::Entry& e) {
  std::string why = e.reason.empty() ? e.op : e.reason;
  return fmt::format("{:8} {:14} {:5} {:>10} B  {} {} -> {}  {}{}{}{}", name(e.phase), e.collective, e.axes, e.bytes,
                     e.tensor, e.from, e.to, e.module, why.empty() ? "" : ": " + why,
                     e.plan_line.empty() ? "" : " [" + e.plan_line + "]", e.asked_for ? "" : " (implicit)");
}

std::map<std::string, int> count_by_kind(const std::vector<CommLog::Entry>& entries) {
  std::map<std::string, int> n;
  for (const auto& e : entries) ++n[e.collective];
  return n;
}

}  // namespace dtensor
