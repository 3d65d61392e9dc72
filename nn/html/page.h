// Pages to look at: one self-contained HTML file each, light or dark as its reader has it, that asks for nothing else.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dtensor::nn::html {

// page.css and plots.js, as they are.
extern const char* const style;
extern const char* const script;

// Text as HTML shows it.
std::string escaped(std::string_view text);

// The whole page. `title` and `introduction` are text, `body` is HTML.
std::string page(const std::string& title, const std::string& introduction, const std::string& body);

// A row of numbers with what they are: {"2.31", "loss"}.
std::string figures(const std::vector<std::pair<std::string, std::string>>& list);

// What colours mean: {text, colour}, where a colour is a name of page.css.
std::string key(const std::vector<std::pair<std::string, std::string>>& colours);

struct Curve {
  std::string name, colour;
  std::vector<int64_t> x;  // growing
  std::vector<double> y;   // finite
  bool dots = false;       // a dot for each value
};
struct Plot {
  std::string title, unit;
  std::vector<Curve> curves;
  bool stacked = false;      // each on those before it, which have the same x
  bool logarithmic = false;  // at first; its reader can change it
};
// Plots over one range of x, which the reader can look at closer: once in a page. Of each curve at most `most_points`
// are drawn: the least and the greatest of equal shares. `again`: seconds after which the page is read again; 0: never.
constexpr size_t most_points = 2000;
std::string plots(const std::vector<Plot>& list, int again = 0);

// "640", "409.6 k", "8.03 B": of thousands, millions, billions and so on.
std::string count_text(double n);
// "12.50 MiB", "3.42 GiB"
std::string bytes_text(double bytes);

}  // namespace dtensor::nn::html
