#include "nn/report/run_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "nn/html/page.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

using html::Curve;
using html::escaped;
using html::Plot;
using Json = nlohmann::ordered_json;

constexpr int period = 10;  // seconds between two writings of a page
constexpr int colours = 8;  // of page.css, c0 to c7
constexpr std::string_view time_prefix = "time/";

double last_of(const Series& s) { return s.values.empty() ? 0 : s.values.back(); }

double sum_of(const Series& s) {
  double sum = 0;
  for (double v : s.values) sum += v;
  return sum;
}

std::vector<double> after_first(const Series& s) {
  return {s.values.begin() + (s.values.size() > 1 ? 1 : 0), s.values.end()};
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  auto middle = v.begin() + ptrdiff_t(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  return *middle;
}

std::string colour(size_t i) { return fmt::format("c{}", i % colours); }

std::string duration(double seconds) {
  auto s = int64_t(std::llround(seconds));
  return s < 60 ? fmt::format("{:.1f} s", seconds) : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

// The curves of that name, one for each run that has it. `label` is added to the names of runs.
void add_curves(Plot& plot, const std::vector<NamedRun>& runs, const std::string& name, const std::string& label,
                bool dots) {
  for (size_t i = 0; i < runs.size(); ++i) {
    const Series& s = (*runs[i].metrics)[name];
    if (s.values.empty()) continue;
    std::string shown = runs.size() == 1 ? label : runs[i].name + (dots ? " " + label : "");
    // Of one run each curve has a colour, of several each run.
    plot.curves.push_back({shown, colour(runs.size() == 1 ? plot.curves.size() : i), s.steps, s.values, dots});
  }
}

std::vector<Plot> plots_of(const std::vector<NamedRun>& runs) {
  std::vector<Plot> all;
  auto add = [&](const std::string& title, const std::string& unit, const char* name) -> Plot& {
    all.push_back({title, unit, {}});
    add_curves(all.back(), runs, name, title, false);
    return all.back();
  };
  add_curves(add("training loss", "per token", "loss"), runs, "eval_loss", "evaluation", true);
  add("gradient norm", "before clipping", "grad_norm").logarithmic = true;
  add("learning rate", "", "lr");
  add("throughput", "tokens per second", "tokens_per_second");
  if (runs.size() == 1) {
    all.push_back({"time of a step", "seconds of rank 0", {}, true});
    for (const auto& [name, series] : runs[0].metrics->series)
      if (name.starts_with(time_prefix))
        all.back().curves.push_back(
            {name.substr(time_prefix.size()), colour(all.back().curves.size()), series.steps, series.values});
  } else {
    add("time of a step", "seconds", "step_seconds");
  }
  add("memory", "bytes, the peak since the second step", "peak_memory_bytes");
  std::erase_if(all, [](const Plot& p) { return p.curves.empty(); });
  return all;
}

std::string table_of(const std::vector<std::vector<std::string>>& lines) {
  std::string out = "<div class=scroll><table>";
  for (size_t i = 0; i < lines.size(); ++i) {
    out += "<tr>";
    for (size_t k = 0; k < lines[i].size(); ++k)
      out += fmt::format("<{}{}>{}", i == 0 ? "th" : "td", k > 0 ? " class=n" : "", escaped(lines[i][k]));
  }
  return out + "</table></div>";
}

std::string headline(const RunMetrics& m) {
  RunSummary s = summary(m);
  std::vector<std::pair<std::string, std::string>> list{{std::to_string(s.steps), "steps"},
                                                        {fmt::format("{:.4f}", s.last_loss), "training loss"}};
  if (!m["eval_loss"].values.empty())
    list.emplace_back(fmt::format("{:.4f}", last_of(m["eval_loss"])), "evaluation loss");
  list.emplace_back(fmt::format("{:.0f}", s.tokens_per_second), "tokens per second");
  list.emplace_back(html::count_text(double(s.tokens)), "tokens");
  list.emplace_back(html::bytes_text(s.peak_memory_bytes), "peak memory of a rank");
  list.emplace_back(duration(s.seconds), "in steps");
  return html::figures(list);
}

std::string time_table(const RunMetrics& m) {
  RunSummary s = summary(m);
  double whole = 0;
  for (const auto& [part, seconds] : s.time) whole += seconds;
  if (whole == 0) return "";
  std::vector<std::vector<std::string>> lines{{"part", "ms", "%"}};
  for (const auto& [part, seconds] : s.time)
    lines.push_back({part, fmt::format("{:.3f}", 1e3 * seconds), fmt::format("{:.1f}", 100 * seconds / whole)});
  lines.push_back({"step", fmt::format("{:.3f}", 1e3 * whole), "100"});
  return "<h2>Where a step's time goes</h2><p>The mean of rank 0's steps after the first.</p>" + table_of(lines);
}

std::string samples_of(const RunMetrics& m) {
  if (m.samples.empty()) return "";
  std::string out = "<h2>Samples</h2>";
  size_t n = m.samples.size(), first = n > 20 ? n - 20 : 0;  // the latest
  for (size_t i = n; i-- > first;)
    out += fmt::format("<p>step {}</p><pre>{}<b>{}</b></pre>", m.samples[i].step, escaped(m.samples[i].prompt),
                       escaped(m.samples[i].text));
  return out;
}

std::string command_of(const NamedRun& run, bool named) {
  const Json& r = run.metrics->run;
  if (r.is_null()) return "";
  std::string out =
      fmt::format("<h2>Command{}</h2><pre>{}</pre><p>version {}, mesh {}</p>", named ? " of " + escaped(run.name) : "",
                  escaped(r.value("command", "")), escaped(r.value("version", "")), escaped(r.value("mesh", "")));
  if (r.contains("plan") && !r["plan"].is_null())
    out += fmt::format("<details><summary>plan</summary><pre>{}</pre></details>", escaped(r["plan"].dump(2)));
  return out;
}

}  // namespace

RunSummary summary(const RunMetrics& m) {
  RunSummary s;
  s.steps = m.steps;
  const Series &loss = m["loss"], &eval = m["eval_loss"], &peak = m["peak_memory_bytes"];
  if (!loss.values.empty()) s.first_loss = loss.values.front(), s.last_loss = loss.values.back();
  if (!eval.values.empty()) s.eval_loss = *std::min_element(eval.values.begin(), eval.values.end());
  if (!peak.values.empty()) s.peak_memory_bytes = *std::max_element(peak.values.begin(), peak.values.end());
  s.tokens = sum_of(m["tokens"]), s.seconds = sum_of(m["step_seconds"]);
  s.tokens_per_second = median(after_first(m["tokens_per_second"]));
  for (const auto& [name, series] : m.series) {
    if (!name.starts_with(time_prefix)) continue;
    std::vector<double> v = after_first(series);
    double sum = 0;
    for (double x : v) sum += x;
    s.time.emplace_back(name.substr(time_prefix.size()), sum / double(v.size()));
  }
  return s;
}

std::vector<std::vector<std::string>> comparison(const std::vector<NamedRun>& runs) {
  std::vector<RunSummary> all;
  std::vector<std::vector<std::string>> lines{{""}};
  for (const NamedRun& r : runs) lines[0].push_back(r.name), all.push_back(summary(*r.metrics));
  auto add = [&](const std::string& what, auto text) {
    lines.push_back({what});
    for (const RunSummary& s : all) lines.back().push_back(text(s));
  };
  auto number = [](double x, const char* form) {
    return x == 0 ? std::string("-") : fmt::format(fmt::runtime(form), x);
  };
  add("steps", [](const RunSummary& s) { return std::to_string(s.steps); });
  add("first loss", [&](const RunSummary& s) { return number(s.first_loss, "{:.4f}"); });
  add("last loss", [&](const RunSummary& s) { return number(s.last_loss, "{:.4f}"); });
  add("least evaluation loss", [&](const RunSummary& s) { return number(s.eval_loss, "{:.4f}"); });
  add("tokens", [&](const RunSummary& s) { return number(s.tokens, "{:.0f}"); });
  add("tokens per second", [&](const RunSummary& s) { return number(s.tokens_per_second, "{:.0f}"); });
  add("seconds in steps", [&](const RunSummary& s) { return number(s.seconds, "{:.1f}"); });
  add("peak memory, MiB", [&](const RunSummary& s) { return number(s.peak_memory_bytes / (1 << 20), "{:.2f}"); });
  std::set<std::string> parts;
  for (const RunSummary& s : all)
    for (const auto& [part, seconds] : s.time) parts.insert(part);
  for (const std::string& part : parts)
    add("ms of a step: " + part, [&](const RunSummary& s) {
      for (const auto& [name, seconds] : s.time)
        if (name == part) return fmt::format("{:.3f}", 1e3 * seconds);
      return std::string("-");
    });
  return lines;
}

std::string run_page(const std::vector<NamedRun>& runs, const std::string& title, const std::string& introduction,
                     const std::string& sections, int again) {
  bool one = runs.size() == 1;
  std::string body = one ? headline(*runs[0].metrics) : table_of(comparison(runs)) + "<h2>Curves</h2>";
  body += html::plots(plots_of(runs), again);
  if (one) body += time_table(*runs[0].metrics);
  body += sections;
  if (one) body += samples_of(*runs[0].metrics);
  for (const NamedRun& r : runs) body += command_of(r, !one);
  return html::page(title, introduction, body);
}

RunPage::RunPage(std::string file, std::string title, std::string sections)
    : file_(std::move(file)), title_(std::move(title)), sections_(std::move(sections)) {
  write("not begun", period);
}

void RunPage::begin(int64_t, const std::vector<Json>& before) {
  for (const Json& line : before) metrics_.add(line);
}

void RunPage::line(const Json& line) {
  metrics_.add(line);
  auto now = std::chrono::steady_clock::now();
  if (metrics_.steps == 0 || now < next_) return;
  write("under way", period);
  // A page takes at most a fiftieth of the time.
  auto after = std::chrono::steady_clock::now();
  next_ = after + std::max<std::chrono::steady_clock::duration>(std::chrono::seconds(period), 50 * (after - now));
}

void RunPage::end(const std::string& how) { write(how, 0); }

// Written beside and renamed, so that a reader never finds half a page.
void RunPage::write(const std::string& state, int again) {
  std::string beside = file_ + ".new";
  std::ofstream out(beside, std::ios::binary);
  out << run_page({{"", &metrics_}}, title_, state, sections_, again);
  std::error_code error;
  if (out.flush()) std::filesystem::rename(beside, file_, error);
  check(out.good() && !error, "[RunPage] cannot write {}: does its folder exist, and has the disk room?", file_);
}

}  // namespace dtensor::nn
