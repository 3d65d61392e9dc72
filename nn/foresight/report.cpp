#include "nn/foresight/report.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <set>

#include "nn/parallel/module_paths.h"

#include "nn/html/page.h"

namespace dtensor::nn {
namespace {

using namespace html;

constexpr double width = 1000;  // of drawings, in their own units

std::string ms(double seconds) { return fmt::format("{:.3f} ms", seconds * 1e3); }

std::string headline(const Forecast& f) {
  std::vector<std::pair<std::string, std::string>> list{
      {std::to_string(f.mesh.world()), "ranks, " + to_string(f.mesh)},
      {count_text(double(f.parameters)), "parameters"},
      {bytes_text(double(f.memory.peak_bytes)), "peak memory of a rank"},
      {std::to_string(f.collectives.size()), "tensors communicated"}};
  if (f.host_memory.peak_bytes)
    list.emplace_back(bytes_text(double(f.host_memory.peak_bytes)), "host memory of a rank");
  if (f.hardware) {
    list.emplace_back(ms(f.time.step), "a step on " + f.hardware->name);
    list.emplace_back(fmt::format("{:.0f}", f.tokens_per_second()), "tokens per second");
    list.emplace_back(fmt::format("{:.1f} %", 100 * f.mfu), "MFU");
  }
  return figures(list);
}

// What is in use at the peak, as one bar; and all that is in use, call by call.
std::string memory(const Forecast& f) {
  const MemoryUse& m = f.memory;
  std::string html = fmt::format(
      "<h2>Memory of rank {}</h2><p>The peak is {} bytes, in {}{}.</p><svg viewBox=\"0 0 {} 34\" role=img>", f.rank,
      m.peak_bytes, m.at.empty() ? "what is there before the step" : "<code>" + escaped(m.at) + "</code>",
      f.hardware ? fmt::format(", of {} that a device has", bytes_text(double(f.hardware->memory_bytes))) : "", width);
  double x = 0;
  std::vector<std::pair<std::string, std::string>> colours;
  for (int k = 0; k < memory_kinds; ++k) {
    double w = m.peak_bytes ? width * double(m.of_kind[k]) / double(m.peak_bytes) : 0;
    std::string kind(name(MemoryKind(k)));
    html += fmt::format(
        "<rect x=\"{:.2f}\" y=\"2\" width=\"{:.2f}\" height=\"30\" fill=\"var(--{})\"><title>{} {}"
        "</title></rect>",
        x, w, kind, kind, m.of_kind[k]);
    x += w;
    colours.emplace_back(fmt::format("{} {}", kind, bytes_text(double(m.of_kind[k]))), kind);
  }
  html += "</svg>" + key(colours) + fmt::format("<svg viewBox=\"0 0 {} 190\" role=img><polygon points=\"0,170", width);
  double calls = std::max(1, m.curve.back().first), most = std::max(double(m.peak_bytes), 1.0), last = 170;
  size_t every = std::max(size_t(1), m.curve.size() / 1500);  // of neighbours the highest is drawn
  for (size_t i = 0; i < m.curve.size(); i += every) {
    int64_t high = 0;
    for (size_t j = i; j < std::min(i + every, m.curve.size()); ++j) high = std::max(high, m.curve[j].second);
    last = 170 - 155 * double(high) / most;
    html += fmt::format(" {:.1f},{:.1f}", width * m.curve[i].first / calls, last);
  }
  return html + fmt::format(
                    " {0},{1:.1f} {0},170\" fill=\"var(--activations)\" fill-opacity=\".35\" "
                    "stroke=\"var(--activations)\"/><text x=\"2\" y=\"12\">{2}</text><text x=\"0\" y=\"185\">"
                    "the first call</text><text x=\"{0}\" y=\"185\" text-anchor=\"end\">the last</text></svg>",
                    width, last, bytes_text(most));
}

// Rows of bars: kernels, and collectives. Bars too thin to see are joined with those beside them.
std::string timeline(const Forecast& f) {
  if (!f.hardware) return "";
  const StepTime& t = f.time;
  std::string html = fmt::format(
      "<h2>A step on {}</h2><p>{}: {} products and attention, {} other kernels, {} waiting for communication (of {}), "
      "{} "
      "waiting for the host.</p><svg viewBox=\"0 0 {} 92\" role=img><text x=\"0\" y=\"12\">kernels</text><text x=\"0\" "
      "y=\"58\">communication</text>",
      escaped(f.hardware->name), ms(t.step), ms(t.compute), ms(t.memory_bound), ms(t.exposed_communication),
      ms(t.communication), ms(t.host), width);
  struct Bar {
    double begin = 0, end = -1;
    std::string colour, what;
  };
  Bar open[2];
  auto draw = [&](const Bar& b, int row) {
    if (b.end < b.begin) return;
    html += fmt::format(
        "<rect x=\"{:.2f}\" y=\"{}\" width=\"{:.2f}\" height=\"22\" fill=\"var(--{})\"><title>{}</title>"
        "</rect>",
        width * b.begin / t.step, row ? 62 : 16, std::max(0.15, width * (b.end - b.begin) / t.step), b.colour,
        escaped(b.what));
  };
  for (const Span& s : f.spans) {
    const Activity& a = f.activities[s.activity];
    bool link = a.kind == Activity::Kind::collective;
    Bar next{s.begin, s.end,
             link                                     ? "link"
             : a.kind == Activity::Kind::memory_bound ? "memory"
                                                      : "compute",
             fmt::format("{} {} {}", name(a.phase), a.name, f.modules[size_t(a.module)])};
    Bar& b = open[link];
    if (b.colour == next.colour && next.begin - b.end < t.step / 4000 && next.end - b.begin < t.step / 250)
      b.end = next.end;
    else
      draw(b, link), b = next;
  }
  draw(open[0], 0), draw(open[1], 1);
  return html + "</svg>" +
         key({{"products, attention", "compute"}, {"other kernels", "memory"}, {"collectives", "link"}});
}

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= path.size();) {
    size_t end = std::min(path.find('.', at), path.size());
    parts.push_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Each axis: which ranks of rank 0 lie on it, and what is communicated over it, alone or with others.
std::string mesh(const Forecast& f) {
  std::string html = "<h2>Mesh</h2><div class=scroll><table><tr><th>axis<th class=n>size<th>ranks";
  html += f.hardware ? "<th class=n>nodes" : "";
  html += "<th class=n>collectives<th class=n>bytes";
  int stride = f.mesh.world();
  for (int a = 0; a < f.mesh.axes(); ++a) {
    stride /= f.mesh.size(a);
    std::set<uint64_t> launches;
    int64_t bytes = 0;
    for (const CommLog::Entry& e : f.collectives)
      if (("," + e.axes + ",").find("," + f.mesh.name(a) + ",") != std::string::npos)
        launches.insert(e.group), bytes += e.bytes;
    int size = f.mesh.size(a);
    std::string ranks = fmt::format("0{}", size > 1 ? fmt::format(", {}", stride) : "");
    if (size > 2) ranks += fmt::format("{}{}", size > 3 ? " ... " : ", ", (size - 1) * stride);
    html += fmt::format("<tr><td>{}<td class=n>{}<td>{}", escaped(f.mesh.name(a)), size, ranks);
    if (f.hardware) html += fmt::format("<td class=n>{}", f.hardware->peers(f.mesh, axis_bit(a)).nodes);
    html += fmt::format("<td class=n>{}<td class=n>{}", launches.size(), bytes);
  }
  return html + "</table></div>";
}

// The model as a tree, a row for each module and each parameter; a module that has but one parameter is one row.
std::string layouts(const Forecast& f) {
  std::map<std::pair<std::string, std::string>, int> rows;
  std::vector<std::pair<std::string, std::string>> order;
  std::map<std::string, int> inside;  // rows below each module
  for (const auto& [path, spec] : f.layouts) {
    std::string like = like_modules(path);
    if (rows[{like, spec}]++ > 0) continue;
    order.emplace_back(like, spec);
    for (size_t dot = like.find('.'); dot != like.npos; dot = like.find('.', dot + 1)) ++inside[like.substr(0, dot)];
  }
  std::string html =
      "<h2>The model, its parameters as they are stored</h2><div class=scroll><table><tr><th>module<th class=n>how "
      "many<th>shape and layout";
  std::vector<std::string> open;  // modules that the row before is in
  for (const auto& [path, spec] : order) {
    std::vector<std::string> parts = parts_of(path);
    if (size_t dot = path.rfind('.'); dot != path.npos && inside[path.substr(0, dot)] == 1) {
      std::string leaf = parts.back();
      parts.pop_back();
      parts.back() += "." + leaf;
    }
    size_t same = size_t(std::ranges::mismatch(open, parts).in1 - open.begin());
    for (size_t depth = same; depth < parts.size(); ++depth) {
      html += fmt::format("<tr><td style=\"padding-left:{:.1f}em\"><code>{}</code>", 1.4 * double(depth),
                          escaped(parts[depth]));
      html += depth + 1 < parts.size()
                  ? "<td><td>"
                  : fmt::format("<td class=n>{}<td><code>{}</code>", rows[{path, spec}], escaped(spec));
    }
    open.assign(parts.begin(), parts.end() - 1);
  }
  return html + "</table></div>";
}

std::string collectives(const Forecast& f) {
  struct Row {
    int64_t times = 0, bytes = 0;
    std::string rejected = {};  // of the first of them
  };
  std::map<std::vector<std::string>, Row> rows;
  std::vector<std::vector<std::string>> order;
  for (size_t i = 0; i < f.collectives.size(); ++i) {
    const CommLog::Entry& e = f.collectives[i];
    std::string why = e.reason.empty() ? e.op : like_modules(e.reason);
    if (!e.plan_line.empty()) why += fmt::format("{}[{}]", why.empty() ? "" : " ", e.plan_line);
    if (!e.asked_for) why += " (implicit)";
    std::vector<std::string> row{std::string(name(e.phase)),
                                 e.collective,
                                 e.axes,
                                 like_modules(e.module),
                                 e.from.empty() ? "" : e.from + " → " + e.to,
                                 why};
    Row& r = rows[row];
    r.bytes += e.bytes;
    if (r.times++ > 0) continue;
    order.push_back(row);
    if (!f.alternatives.empty())
      for (const Alternative& a : f.alternatives[i]) r.rejected += fmt::format("{} bytes: {}\n", a.bytes, a.what);
  }
  std::string html =
      "<h2>Collectives</h2><div class=scroll><table><tr><th>phase<th>kind<th>axes<th class=n>times<th "
      "class=n>bytes<th>module<th>layouts<th>why<th>rejected";
  for (const auto& row : order) {
    html += "<tr>";
    for (size_t cell = 0; cell < row.size(); ++cell) {
      if (cell == 3) html += fmt::format("<td class=n>{}<td class=n>{}", rows[row].times, rows[row].bytes);
      html += "<td>" + escaped(row[cell]);
    }
    const std::string& rejected = rows[row].rejected;
    html += rejected.empty() ? "<td>"
                             : fmt::format("<td><details><summary>{}</summary><pre>{}</pre></details>",
                                           escaped(rejected.substr(0, rejected.find(':'))), escaped(rejected));
  }
  return html + (order.empty() ? "<tr><td>none" : "") + "</table></div>";
}

}  // namespace

std::string html_sections(const Forecast& f) { return mesh(f) + memory(f) + timeline(f) + layouts(f) + collectives(f); }

std::string html_report(const Forecast& f, const std::string& title) {
  return page(title, fmt::format("One step of {} tokens, as a dry run saw it.", f.tokens),
              headline(f) + html_sections(f));
}

}  // namespace dtensor::nn
