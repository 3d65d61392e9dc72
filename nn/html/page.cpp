#include "nn/html/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace dtensor::nn::html {
namespace {

// Six digits draw the same picture.
double rounded(double y) { return std::stod(fmt::format("{:.6g}", y)); }

// The indices of the least and the greatest value of each of equal shares, in order. Stacked curves keep the same x, so
// their shares keep the first value instead.
std::vector<size_t> thinned(const std::vector<double>& y, bool stacked) {
  std::vector<size_t> kept;
  size_t n = y.size(), shares = stacked ? most_points : most_points / 2;
  for (size_t s = 0; s < std::min(n, shares); ++s) {
    size_t begin = s * n / std::min(n, shares), end = (s + 1) * n / std::min(n, shares);
    auto [low, high] = std::minmax_element(y.begin() + ptrdiff_t(begin), y.begin() + ptrdiff_t(end));
    auto a = size_t(low - y.begin()), b = size_t(high - y.begin());
    if (stacked) a = b = begin;
    kept.push_back(std::min(a, b));
    if (a != b) kept.push_back(std::max(a, b));
  }
  return kept;
}

nlohmann::ordered_json to_json(const Plot& p) {
  nlohmann::ordered_json curves = nlohmann::ordered_json::array();
  for (const Curve& c : p.curves) {
    std::vector<int64_t> x;
    std::vector<double> y;
    for (size_t i : thinned(c.y, p.stacked)) x.push_back(c.x[i]), y.push_back(rounded(c.y[i]));
    curves.push_back({{"name", c.name}, {"colour", c.colour}, {"dots", c.dots}, {"x", x}, {"y", y}});
  }
  return {{"title", p.title}, {"unit", p.unit}, {"stacked", p.stacked}, {"log", p.logarithmic}, {"curves", curves}};
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string page(const std::string& title, const std::string& introduction, const std::string& body) {
  return fmt::format(
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
      "content=\"width=device-width\"><title>{0}</title><style>{1}</style><h1>{0}</h1><p>{2}</p>{3}</html>\n",
      escaped(title), style, escaped(introduction), body);
}

std::string figures(const std::vector<std::pair<std::string, std::string>>& list) {
  std::string html = "<div class=figures>";
  for (const auto& [value, what] : list) html += fmt::format("<div><b>{}</b>{}</div>", escaped(value), escaped(what));
  return html + "</div>";
}

std::string key(const std::vector<std::pair<std::string, std::string>>& colours) {
  std::string html = "<p class=key>";
  for (const auto& [text, colour] : colours)
    html += fmt::format("<span><i style=\"background:var(--{})\"></i>{}</span>", colour, escaped(text));
  return html + "</p>";
}

std::string plots(const std::vector<Plot>& list, int again) {
  std::string html = "<div class=plots>";
  nlohmann::ordered_json all{{"again", again}, {"plots", nlohmann::ordered_json::array()}};
  for (const Plot& p : list) {
    html += fmt::format("<div class=plot><h3>{}<small>{}</small></h3><div class=key></div></div>", escaped(p.title),
                        escaped(p.unit));
    all["plots"].push_back(to_json(p));
  }
  std::string data = all.dump();
  for (size_t at = 0; (at = data.find('<', at)) != data.npos;) data.replace(at, 1, "\\u003c");  // no tag begins in it
  return html +
         fmt::format("</div><script type=\"application/json\" id=plots>{}</script><script>{}</script>", data, script);
}

std::string count_text(double n) {
  if (n < 1e4) return fmt::format("{:.0f}", n);
  size_t step = 0;
  for (n /= 1e3; n >= 999.95 && step < 3; n /= 1e3) ++step;
  return fmt::format("{:.4g} {}", n, "kMBT"[step]);
}

std::string bytes_text(double bytes) {
  return bytes >= 1 << 28 ? fmt::format("{:.2f} GiB", bytes / (1 << 30)) : fmt::format("{:.2f} MiB", bytes / (1 << 20));
}

}  // namespace dtensor::nn::html
