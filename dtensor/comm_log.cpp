#include "dtensor/comm_log.h"

#include "dtensor/table.h"

namespace dtensor {

CommLog::CommLog(Rank& rank, int64_t most_entries) : rank_(rank), most_entries_(most_entries) {
  check(most_entries >= 0, "[CommLog] a list of at most {} collectives: give 0 or more", most_entries);
  rank_.add(*this);
}

void CommLog::clear() {
  open_.clear(), list_.clear(), launches_.clear(), index_.clear(), different_.clear(), entries_.clear();
  size_ = 0, written_launches_ = written_entries_ = 0, group_ = 0;
}

void CommLog::on_collective(const CollectiveEvent& e) {
  if (e.group != group_) close();  // tensors of one launch come one after the other
  group_ = e.group;
  const MeshShape& mesh = e.mesh.shape();
  auto label = [&](Label::Kind k) { return std::string(rank_.label(k)); };
  open_.push_back(
      &*different_
            .insert({std::string(collective_name(e.kind)), mesh.names(e.axes),
                     fmt::format("{}{}", name(e.dtype), e.shape), e.step ? to_string(e.step->from, mesh) : "",
                     e.step ? to_string(e.step->to, mesh) : "", e.bytes, 0, rank_.phase, label(Label::Kind::module),
                     label(Label::Kind::op), e.reason.empty() ? label(Label::Kind::reason) : std::string(e.reason),
                     label(Label::Kind::plan_line), e.asked_for, e.peer})
            .first);
  ++size_;
}

// The latest launch is complete.
void CommLog::close() {
  if (open_.empty()) return;
  auto [it, is_new] = index_.emplace(open_, uint32_t(launches_.size()));
  if (is_new) launches_.push_back({open_, 0});
  ++launches_[it->second].times;
  if (size_ <= most_entries_) list_.push_back(it->second);
  open_.clear();
}

const std::vector<CommLog::Entry>& CommLog::entries() const {
  if (size_ > most_entries_)
    fail(
        "[CommLog::entries] there were {} collectives, and the list has room for {}: ask for totals(), clear() it "
        "between steps, or give CommLog(rank, most_entries) a larger one",
        size_, most_entries_);
  auto write = [&](const Launch& launch, size_t group) {
    for (const Entry* e : launch) entries_.push_back(*e), entries_.back().group = int(group);
  };
  entries_.resize(written_entries_);  // the launch that was open may have grown
  for (; written_launches_ < list_.size(); ++written_launches_)
    write(launches_[list_[written_launches_]].entries, written_launches_);
  written_entries_ = entries_.size();
  write(open_, list_.size());
  return entries_;
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

class Adder {
 public:
  explicit Adder(const std::vector<CommLog::By>& by) : by_(by) {
    if (by.empty()) found_.emplace_back(), index_[{}] = 0;
  }
  // A collective of a launch that ran so many times.
  void add(const CommLog::Entry& e, int64_t launch, int64_t times) {
    std::vector<std::string> key;
    for (CommLog::By b : by_) key.push_back(value(e, b));
    auto [it, is_new] = index_.emplace(key, found_.size());
    if (is_new) found_.push_back({std::move(key)});
    CommTotal& total = found_[it->second];
    if (launches_.emplace(it->second, launch).second) total.launches += times;
    total.tensors += times;
    total.bytes += times * e.bytes;
  }
  std::vector<CommTotal> totals() && { return std::move(found_); }

 private:
  const std::vector<CommLog::By>& by_;
  std::vector<CommTotal> found_;
  std::map<std::vector<std::string>, size_t> index_;  // of found_
  std::set<std::pair<size_t, int64_t>> launches_;     // those counted, by place in found_
};

std::string summary_of(const std::vector<CommTotal>& totals, const CommTotal& all, const std::vector<CommLog::By>& by) {
  std::vector<std::vector<std::string>> lines(1);
  for (CommLog::By b : by) lines[0].push_back(headings[int(b)]);
  if (by.empty()) lines[0].emplace_back();
  const size_t keys = lines[0].size();
  for (const char* h : {"launches", "tensors", "bytes"}) lines[0].push_back(h);
  auto add = [&](std::vector<std::string> line, const CommTotal& t) {
    line.resize(keys);
    line.insert(line.end(), {std::to_string(t.launches), std::to_string(t.tensors), std::to_string(t.bytes)});
    lines.push_back(std::move(line));
  };
  if (!by.empty())
    for (const CommTotal& t : totals) add(t.key, t);
  add({"total"}, all);
  return table(std::string(keys, '<') + ">>>", lines);
}

}  // namespace

std::vector<CommTotal> CommLog::totals(const std::vector<By>& by) const {
  Adder sum(by);
  auto add = [&](const Launch& launch, size_t number, int64_t times) {
    for (const Entry* e : launch) sum.add(*e, int64_t(number), times);
  };
  for (size_t i = 0; i < launches_.size(); ++i) add(launches_[i].entries, i, launches_[i].times);
  add(open_, launches_.size(), 1);
  return std::move(sum).totals();
}

std::string CommLog::summary(const std::vector<By>& by) const { return summary_of(totals(by), totals({})[0], by); }

std::vector<CommTotal> totals(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by) {
  Adder sum(by);
  for (const CommLog::Entry& e : entries) sum.add(e, e.group, 1);
  return std::move(sum).totals();
}

std::string summary(const std::vector<CommLog::Entry>& entries, const std::vector<CommLog::By>& by) {
  return summary_of(totals(entries, by), totals(entries, {})[0], by);
}

}  // namespace dtensor
