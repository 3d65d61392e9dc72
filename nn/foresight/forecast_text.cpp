// A forecast as JSON and as text.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "dtensor/table.h"
#include "nn/foresight/forecast.h"
#include "nn/parallel/module_paths.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

Json collectives_json(const Forecast& f) {
  auto layout = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  Json list = Json::array();
  for (size_t i = 0; i < f.collectives.size(); ++i) {
    const CommLog::Entry& e = f.collectives[i];
    list.push_back({{"phase", name(e.phase)},
                    {"collective", e.collective},
                    {"axes", e.axes},
                    {"tensor", e.tensor},
                    {"from", layout(e.from)},
                    {"to", layout(e.to)},
                    {"bytes", e.bytes},
                    {"group", e.group},
                    {"module", e.module},
                    {"op", e.op},
                    {"reason", e.reason},
                    {"plan_line", e.plan_line},
                    {"asked_for", e.asked_for}});
    if (e.peer >= 0) list.back()["peer"] = e.peer;
    if (f.alternatives.empty()) continue;
    list.back()["alternatives"] = Json::array();
    for (const Alternative& a : f.alternatives[i])
      list.back()["alternatives"].push_back({{"what", a.what}, {"bytes", a.bytes}});
  }
  return list;
}

// Those that hold the most, first.
std::vector<std::pair<std::string, int64_t>> by_size(const std::map<std::string, int64_t>& of_module) {
  std::vector<std::pair<std::string, int64_t>> list(of_module.begin(), of_module.end());
  std::ranges::stable_sort(list, [](const auto& a, const auto& b) { return a.second > b.second; });
  return list;
}

std::string amount(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  for (; bytes >= 1024 && u < 4; ++u) bytes /= 1024;
  return u ? fmt::format("{:.2f} {}", bytes, units[u]) : fmt::format("{:.0f} B", bytes);
}

std::string duration(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3f} s", seconds);
  return seconds >= 1e-3 ? fmt::format("{:.3f} ms", seconds * 1e3) : fmt::format("{:.1f} us", seconds * 1e6);
}

// A row per launch, and totals by phase and kind.
std::string collectives_text(const Forecast& f) {
  const std::vector<CommLog::Entry>& entries = f.collectives;
  std::vector<std::vector<std::string>> lines{{"phase", "collective", "axes", "bytes", "tensor", "for"}};
  for (size_t i = 0; i < entries.size();) {
    const CommLog::Entry& e = entries[i];
    int64_t bytes = 0;
    size_t n = 0;
    for (; i < entries.size() && entries[i].group == e.group; ++i, ++n) bytes += entries[i].bytes;
    std::string why = fmt::format("{}{}{}", e.module, e.module.empty() || e.reason.empty() ? "" : ": ", e.reason);
    if (!e.plan_line.empty()) why += fmt::format("{}[{}]", why.empty() ? "" : "  ", e.plan_line);
    if (n > 1) why += fmt::format(" and {} more", n - 1);
    if (!e.asked_for) why += " (implicit)";
    lines.push_back({std::string(name(e.phase)), e.collective, e.axes, std::to_string(bytes), e.tensor, why});
  }
  if (entries.empty()) lines.push_back({"(none)"});
  return fmt::format("One step on {}, bytes as the busiest rank receives them\n\n{}\n{}", to_string(f.mesh),
                     table("<<<><<", lines), summary(entries, {CommLog::By::phase, CommLog::By::collective}));
}

// What it is and why, the same for blocks that are alike.
std::string collective_text(const CommLog::Entry& e) {
  std::string text =
      fmt::format("{} {} over {} of {}: {} bytes", name(e.phase), e.collective, e.axes, e.tensor, e.bytes);
  if (!e.from.empty()) text += fmt::format("\n    {} -> {}", e.from, e.to);
  if (!e.module.empty()) text += "\n    in " + like_modules(e.module);
  std::string why = e.reason.empty() ? e.op : like_modules(e.reason);
  if (!e.asked_for)
    text += fmt::format("\n    because {} cannot take it as it is; nobody asked for it", e.op);
  else if (!why.empty())
    text += "\n    because of " + why;
  return e.plan_line.empty() ? text : text + "\n    by plan line " + e.plan_line;
}

std::string host_memory_text(const MemoryUse& m) {
  std::vector<std::vector<std::string>> lines{{"host memory at its peak", ""}};
  for (int k = 0; k < memory_kinds; ++k)
    if (m.of_kind[k]) lines.push_back({std::string(name(MemoryKind(k))), amount(double(m.of_kind[k]))});
  lines.push_back({"peak", amount(double(m.peak_bytes))});
  return table("<>", lines);
}

std::string memory_text(const MemoryUse& m) {
  std::vector<std::vector<std::string>> lines{{"memory at the peak", ""}};
  for (int k = 0; k < memory_kinds; ++k)
    lines.push_back({std::string(name(MemoryKind(k))), amount(double(m.of_kind[k]))});
  lines.push_back({"peak", amount(double(m.peak_bytes))});
  lines.push_back({"segments of a GPU's allocator", amount(double(m.reserved_bytes))});
  std::string text = table("<>", lines);
  std::vector<std::vector<std::string>> holders{{"held then by", ""}};
  auto list = by_size(m.of_module);
  for (size_t i = 0; i < std::min(list.size(), size_t(8)); ++i)
    holders.push_back({list[i].first.empty() ? "no module" : list[i].first, amount(double(list[i].second))});
  return fmt::format("{}\nThe peak is in {}.\n\n{}", text, m.at.empty() ? "what is there before the step" : m.at,
                     table("<>", holders));
}

}  // namespace

Json to_json(const Forecast& f) {
  Json counts = Json::object();
  int64_t bytes = 0;
  for (const CommLog::Entry& e : f.collectives) bytes += e.bytes;
  for (const auto& [kind, n] : count_by_kind(f.collectives)) counts[kind] = n;
  Json modules = Json::object();
  for (const auto& [module, held] : by_size(f.memory.of_module)) modules[module] = held;
  Json memory{{"peak_bytes", f.memory.peak_bytes}, {"reserved_bytes", f.memory.reserved_bytes}, {"at", f.memory.at}};
  Json host_memory{{"peak_bytes", f.host_memory.peak_bytes}};
  for (int k = 0; k < memory_kinds; ++k) {
    memory[std::string(name(MemoryKind(k)))] = f.memory.of_kind[k];
    host_memory[std::string(name(MemoryKind(k)))] = f.host_memory.of_kind[k];
  }
  memory["modules"] = modules;
  Json j{{"mesh", to_string(f.mesh)},
         {"ranks", f.mesh.world()},
         {"rank", f.rank},
         {"parameters", f.parameters},
         {"tokens", f.tokens},
         {"collectives", collectives_json(f)},
         {"counts", counts},
         {"bytes", bytes},
         {"memory", memory},
         {"host_memory", host_memory},
         {"flops", {{"model", f.model_flops}, {"hardware", f.hardware_flops}}}};
  if (!f.hardware) return j;
  j["hardware"] = f.hardware->name;
  j["memory"]["device_bytes"] = f.hardware->memory_bytes;
  j["time"] = {{"step_seconds", f.time.step},
               {"compute", f.time.compute},
               {"memory_bound", f.time.memory_bound},
               {"communication", f.time.communication},
               {"exposed_communication", f.time.exposed_communication},
               {"host", f.time.host}};
  j["tokens_per_second"] = f.tokens_per_second();
  j["mfu"] = f.mfu;
  return j;
}

std::string to_string(const Forecast& f) {
  std::string text = collectives_text(f) + "\n" + memory_text(f.memory);
  if (f.host_memory.peak_bytes) text += "\n" + host_memory_text(f.host_memory);
  text += fmt::format("\nOperations of a step: {:.4g} of the model, {:.4g} on all ranks\n", f.model_flops,
                      f.hardware_flops);
  if (!f.hardware) return text + "Time is predicted where --hardware says of what: a100, h100, h200, b200 or a file\n";
  const StepTime& t = f.time;
  text += fmt::format(
      "\nOn {} a step takes {}: {} products and attention, {} other kernels, {} communication that is waited for (of "
      "{}), {} the host\n{:.0f} tokens/s, MFU {:.1f} %\n",
      f.hardware->name, duration(t.step), duration(t.compute), duration(t.memory_bound),
      duration(t.exposed_communication), duration(t.communication), duration(t.host), f.tokens_per_second(),
      100 * f.mfu);
  std::string wrong = what_does_not_fit(f);
  return wrong.empty() ? text : text + "It does not fit: " + wrong + "\n";
}

std::string explanation(const Forecast& f) {
  std::map<std::string, size_t> times;
  std::vector<std::pair<std::string, size_t>> order;  // and the first of each
  for (size_t i = 0; i < f.collectives.size(); ++i) {
    std::string text = collective_text(f.collectives[i]);
    if (times[text]++ == 0) order.emplace_back(text, i);
  }
  std::string text = fmt::format("One step on {}, bytes as the busiest rank receives them\n", to_string(f.mesh));
  for (const auto& [what, first] : order) {
    size_t n = times[what];
    text += fmt::format("\n{}{}\n", what, n > 1 ? fmt::format("\n    {} times", n) : "");
    for (const Alternative& a : f.alternatives.empty() ? std::vector<Alternative>() : f.alternatives[first])
      text += fmt::format("    rejected  {} bytes: {}\n", a.bytes, a.what);
  }
  return order.empty() ? text + "\nnothing is communicated\n" : text;
}

}  // namespace dtensor::nn
