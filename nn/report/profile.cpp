#include "nn/report/profile.h"

#include <fmt/format.h>

#include <algorithm>

#include "dtensor/table.h"

namespace dtensor::nn {
namespace {

std::string name_of(const Activity& a) {
  std::string name(a.name);
  if (a.kind == Activity::Kind::wait) return "wait for " + name;
  if (a.kind == Activity::Kind::collective) return "begin " + name;
  return name;
}

}  // namespace

Profile::Line& Profile::Line::operator+=(const Line& l) {
  calls += l.calls, bytes += l.bytes, seconds += l.seconds, operations += l.operations, ceiling += l.ceiling;
  return *this;
}

Profile::Profile(MeshShape mesh, std::optional<Hardware> ceilings, int64_t update_bytes)
    : mesh_(std::move(mesh)), ceilings_(std::move(ceilings)), update_bytes_(update_bytes) {}

void Profile::add(const StepClock& clock) {
  auto seconds = [](StepClock::Time from, StepClock::Time to) {
    return std::chrono::duration<double>(to - from).count();
  };
  const std::vector<Activity>& activities = clock.timeline().activities();
  std::vector<Line> lines(clock.moments().size());
  StepClock::Time last = clock.loaded_at();
  for (size_t i = 0; i < lines.size(); ++i) {
    const Activity& a = activities[i];
    bool communicates = a.kind == Activity::Kind::collective || a.kind == Activity::Kind::wait;
    lines[i] = {1, communicates ? 0 : a.bytes, seconds(last, clock.moments()[i].end), a.operations, 0};
    last = clock.moments()[i].end;
  }
  Line update{1, update_bytes_, seconds(last, clock.ended_at()), 0, 0};
  if (ceilings_) {
    std::vector<Span> spans;
    at_ceilings_ += clock.timeline().time(*ceilings_, mesh_, true, &spans).step;
    for (const Span& s : spans)
      if (s.activity < lines.size() && activities[s.activity].kind != Activity::Kind::collective)
        lines[s.activity].ceiling = s.end - s.begin;
    update.ceiling = ceilings_->memory_bound("adamw", double(update_bytes_));
    at_ceilings_ += update.ceiling;
  }
  for (size_t i = 0; i < lines.size(); ++i) lines_[name_of(activities[i])] += lines[i];
  lines_["optimizer"] += update;
  lines_["wait for data"] += {1, 0, seconds(clock.began_at(), clock.loaded_at()), 0, 0};
  seconds_ += seconds(clock.began_at(), clock.ended_at());
  ++steps_;
}

std::vector<std::string> Profile::text_of(const std::string& name, const Line& l, double step) const {
  auto n = double(steps_);
  auto rate = [&](double work, double unit) {
    return work > 0 && l.seconds > 0 ? fmt::format("{:.4g}", work / l.seconds / unit) : "";
  };
  std::vector<std::string> text{name,
                                fmt::format("{:.4g}", double(l.calls) / n),
                                fmt::format("{:.3f}", 1e3 * l.seconds / n),
                                fmt::format("{:.1f} %", 100 * l.seconds / n / step),
                                rate(double(l.bytes), 1e9),
                                rate(l.operations, 1e12)};
  if (ceilings_) {
    text.push_back(l.ceiling > 0 ? fmt::format("{:.3f}", 1e3 * l.ceiling / n) : "");
    text.push_back(l.ceiling > 0 && l.seconds > 0 ? fmt::format("{:.0f} %", 100 * l.ceiling / l.seconds) : "");
  }
  return text;
}

std::string Profile::table() const {
  check(steps_ > 0, "[Profile] no step was added: add() one that a StepClock has measured");
  double step = seconds_ / double(steps_);
  std::vector<std::pair<std::string, Line>> sorted(lines_.begin(), lines_.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::vector<std::vector<std::string>> lines{{"call", "calls", "ms", "of step", "GB/s", "TFLOP/s"}};
  if (ceilings_) lines[0].insert(lines[0].end(), {"ceiling ms", "reached"});
  for (const auto& [name, line] : sorted) lines.push_back(text_of(name, line, step));
  std::string text = dtensor::table(ceilings_ ? "<>>>>>>>" : "<>>>>>", lines) +
                     fmt::format("\na step, mean of {}: {:.3f} ms", steps_, 1e3 * step);
  if (ceilings_)
    text += fmt::format("; at the ceilings of {} {:.3f} ms", ceilings_->name, 1e3 * at_ceilings_ / double(steps_));
  return text + "\n";
}

}  // namespace dtensor::nn
