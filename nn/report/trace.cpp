#include "nn/report/trace.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace dtensor::nn {
namespace {

using Kind = Activity::Kind;
constexpr int computing = 1;  // the row; those of communicators are this and their axes
constexpr int copying = 0;    // between host memory and the device

// What a slice of computing is, for colours and searches.
std::string_view category(Kind k) {
  switch (k) {
    case Kind::product:
      return "product";
    case Kind::attention:
      return "attention";
    case Kind::wait:
      return "wait";
    default:
      return "kernel";
  }
}

std::string json_text(std::string_view text) { return nlohmann::json(text).dump(); }

// "model.layers.3.mlp" as model, layers.3, mlp.
std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t at = 0; at < path.size();) {
    size_t end = std::min(path.find('.', at), path.size());
    std::string part = path.substr(at, end - at);
    if (!parts.empty() && part.find_first_not_of("0123456789") == part.npos)
      parts.back() += "." + part;
    else
      parts.push_back(part);
    at = end + 1;
  }
  return parts;
}

// One text of each rank to all, in the order of ranks.
std::vector<std::string> all_gather(Communicator& c, const std::string& text) {
  if (c.size() == 1) return {text};
  auto n = size_t(c.size());
  Tensor sizes = Tensor::of<int64_t>({c.size()}, std::vector<int64_t>(n));
  std::vector<int64_t> ones(n, 1);
  c.all_gather({{Tensor::of<int64_t>({1}, {int64_t(text.size())}), sizes, ones}}).wait();
  std::vector<int64_t> counts(sizes.data<int64_t>(), sizes.data<int64_t>() + n);
  int64_t sum = 0;
  for (int64_t k : counts) sum += k;
  auto bytes = [](int64_t k) { return Tensor(std::make_shared<Allocator>(), DType::boolean, {k}); };
  Tensor in = bytes(int64_t(text.size())), out = bytes(sum);
  std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), in.bytes_data());
  c.all_gather({{in, out, counts}}).wait();
  std::vector<std::string> all;
  const char* at = reinterpret_cast<const char*>(out.bytes_data());
  for (int64_t k : counts) all.emplace_back(at, size_t(k)), at += k;
  return all;
}

}  // namespace

Trace::Trace(const DeviceMesh& mesh) : mesh_(mesh) {
  Rank& rank = mesh_.rank_state();
  rank.communicator().barrier();
  origin_ = std::chrono::steady_clock::now();
  event(fmt::format(R"("ph":"M","name":"process_name","args":{{"name":"rank {}"}})", rank.rank()));
  event(fmt::format(R"("ph":"M","name":"process_sort_index","args":{{"sort_index":{}}})", rank.rank()));
  name_row(computing, "compute");
}

double Trace::microseconds(StepClock::Time t) const {
  return std::chrono::duration<double, std::micro>(t - origin_).count();
}

void Trace::event(const std::string& fields) {
  events_ += fmt::format("{}{{\"pid\":{},{}}}", events_.empty() ? "" : ",\n", mesh_.rank_state().rank(), fields);
}

void Trace::name_row(int row, const std::string& name) {
  event(fmt::format(R"("ph":"M","tid":{},"name":"thread_name","args":{{"name":{}}})", row, json_text(name)));
  event(fmt::format(R"("ph":"M","tid":{},"name":"thread_sort_index","args":{{"sort_index":{}}})", row, row));
}

void Trace::slice(int row, const std::string& name, std::string_view category, double begin, double end,
                  const std::string& arguments) {
  event(fmt::format(R"("ph":"X","tid":{},"name":{},"cat":"{}","ts":{:.3f},"dur":{:.3f},"args":{{{}}})", row,
                    json_text(name), category, begin, end - begin, arguments));
}

void Trace::add(const StepClock& clock, int64_t step) {
  ++steps_;
  add_computing(clock, step);
  add_collectives(clock);
  add_memory(clock);
}

// Slices in slices: step, phase, the module's path, op. A slice stays open while what follows lies in it too.
void Trace::add_computing(const StepClock& clock, int64_t step) {
  std::vector<std::string> open;
  double last = microseconds(clock.began_at());
  auto draw = [&](const std::vector<std::string>& path, const std::string& name, std::string_view category, double end,
                  const std::string& arguments) {
    size_t same = 0;
    while (same < path.size() && same < open.size() && path[same] == open[same]) ++same;
    for (; open.size() > same; open.pop_back()) event(fmt::format(R"("ph":"E","tid":{},"ts":{:.3f})", computing, last));
    for (; open.size() < path.size(); open.push_back(path[open.size()]))
      event(fmt::format(R"("ph":"B","tid":{},"name":{},"ts":{:.3f})", computing, json_text(path[open.size()]), last));
    if (!name.empty()) slice(computing, name, category, last, end, arguments);
    last = end;
  };
  std::string whole = fmt::format("step {}", step);
  draw({whole}, "data", "data", microseconds(clock.loaded_at()), "");
  const Timeline& timeline = clock.timeline();
  for (size_t i = 0; i < clock.moments().size(); ++i) {
    const Activity& a = timeline.activities()[i];
    const std::string& module = timeline.modules()[size_t(a.module)];
    std::vector<std::string> path{whole, std::string(dtensor::name(a.phase))};
    if (path.back().empty()) path.pop_back();
    for (std::string& part : parts_of(module)) path.push_back(std::move(part));
    // A collective's own time is on its communicator's row: here it begins.
    std::string name =
        a.kind == Kind::collective ? "" : (a.kind == Kind::wait ? "wait for " : "") + std::string(a.name);
    draw(path, name, category(a.kind), microseconds(clock.moments()[i].end),
         fmt::format(R"("module":{},"bytes":{},"operations":{:.0f})", json_text(module), a.bytes, a.operations));
  }
  draw({whole, "optimizer"}, "update", "update", microseconds(clock.ended_at()), "");
  draw({}, "", "", last, "");
}

// A launch is drawn from when it was begun, or the one before it on its communicator had ended, until it was waited
// for.
void Trace::add_collectives(const StepClock& clock) {
  const Timeline& timeline = clock.timeline();
  struct Launch {
    const Activity* activity;
    double begin, end = -1;
    int64_t bytes = 0, tensors = 0;
  };
  std::map<uint64_t, Launch> launches;  // groups grow
  for (size_t i = 0; i < clock.moments().size(); ++i) {
    const Activity& a = timeline.activities()[i];
    double now = microseconds(clock.moments()[i].end);
    if (a.kind == Kind::wait && launches.contains(a.group)) launches.at(a.group).end = now;
    if (a.kind != Kind::collective) continue;
    Launch& l = launches.try_emplace(a.group, Launch{&a, now}).first->second;
    l.bytes += a.bytes, ++l.tensors;
  }
  for (const auto& [group, l] : launches) {
    auto [row, is_new] = rows_.try_emplace(l.activity->axes, 0);
    int number = l.activity->axes ? computing + int(l.activity->axes) : copying;
    if (is_new)
      name_row(number, number == copying ? "copies" : "communication " + mesh_.shape().names(l.activity->axes));
    std::string arguments = fmt::format(R"("module":{},"phase":"{}","bytes":{},"tensors":{})",
                                        json_text(timeline.modules()[size_t(l.activity->module)]),
                                        dtensor::name(l.activity->phase), l.bytes, l.tensors);
    double begin = std::max(l.begin, row->second);
    if (l.end < 0) {  // point to point: nobody is told when it ended
      event(fmt::format(R"("ph":"i","s":"t","tid":{},"name":{},"ts":{:.3f},"args":{{{}}})", number,
                        json_text(l.activity->name), l.begin, arguments));
      continue;
    }
    row->second = std::max(begin, l.end);
    slice(number, std::string(l.activity->name), "collective", begin, row->second, arguments);
  }
}

void Trace::add_memory(const StepClock& clock) {
  int64_t last = -1;
  for (const StepClock::Moment& m : clock.moments()) {
    if (m.bytes_in_use == last) continue;
    last = m.bytes_in_use;
    event(
        fmt::format(R"("ph":"C","name":"memory","ts":{:.3f},"args":{{"bytes in use":{}}})", microseconds(m.end), last));
  }
}

std::string Trace::gather(const nlohmann::ordered_json& about) const {
  Rank& rank = mesh_.rank_state();
  std::vector<std::string> all = all_gather(rank.communicator(), events_);
  if (rank.rank() != 0) return "";
  return fmt::format("{{\"displayTimeUnit\":\"ms\",\"otherData\":{},\"traceEvents\":[\n{}\n]}}\n", about.dump(),
                     fmt::join(all, ",\n"));
}

}  // namespace dtensor::nn
