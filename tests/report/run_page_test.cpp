#include "nn/report/run_page.h"

#include <fmt/format.h>

#include "nn/html/page.h"
#include "tests/examples/programs.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;

namespace {

RunMetrics some_run(int64_t steps) {
  RunMetrics m;
  m.add(Json::parse(
      R"({"kind": "run", "command": "llama_pretrain --x '<y>'", "version": "1", "mesh": "dp=2", "plan": {"a": 1}})"));
  for (int64_t i = 1; i <= steps; ++i) {
    m.add({{"step", i},
           {"loss", 5.0 / double(i)},
           {"grad_norm", i == 3 ? Json(nullptr) : Json(1.5)},
           {"lr", 0.001},
           {"tokens", 100},
           {"tokens_per_second", i == 1 ? 1.0 : 1000.0 + double(i)},
           {"step_seconds", 0.1},
           {"peak_memory_bytes", 1 << 20},
           {"time", {{"products", 0.06}, {"communication", i == 1 ? 9.0 : 0.04}}}});
    if (i % 2 == 0) m.add({{"kind", "eval"}, {"step", i}, {"eval_loss", 6.0 / double(i)}});
  }
  m.add({{"kind", "sample"}, {"step", steps}, {"prompt", "Once <"}, {"text", "upon"}});
  return m;
}

// What a page's script draws.
Json plots_of(const std::string& page) {
  std::string begin = "<script type=\"application/json\" id=plots>";
  size_t at = page.find(begin) + begin.size();
  return Json::parse(page.substr(at, page.find("</script>", at) - at)).at("plots");
}
Json curve(const Json& plots, const std::string& plot, const std::string& name) {
  for (const Json& p : plots)
    if (p.at("title") == plot)
      for (const Json& c : p.at("curves"))
        if (c.at("name") == name) return c;
  return {};
}

std::vector<double> values(const Json& of, const char* axis) { return of.at(axis).get<std::vector<double>>(); }

}  // namespace

TEST_CASE("a run's summary is of its metrics, without the first step where that is an exception") {
  RunMetrics m = some_run(5);
  RunSummary s = summary(m);
  CHECK(s.steps == 5);
  CHECK(s.first_loss == 5);
  CHECK(s.last_loss == 1);
  CHECK(s.eval_loss == 1.5);
  CHECK(s.tokens == 500);
  CHECK(s.seconds == Approx(0.5));
  CHECK(s.tokens_per_second == 1004);  // the upper one of two in the middle
  CHECK(s.peak_memory_bytes == 1 << 20);
  CHECK(s.time == std::vector<std::pair<std::string, double>>{{"communication", 0.04}, {"products", 0.06}});
  CHECK(summary(some_run(1)).tokens_per_second == 1);
  CHECK(summary(RunMetrics()).tokens == 0);
}

TEST_CASE("a page's figures and curves are those of the metrics") {
  RunMetrics m = some_run(5);
  std::string page = run_page({{"", &m}}, "a < b", "under way", "<i>section</i>", 7);
  CHECK_THAT(page, Contains("<title>a &lt; b</title>") && Contains("<p>under way</p>") && Contains("<i>section</i>"));
  for (const char* figure : {"<b>5</b>steps", "<b>1.0000</b>training loss", "<b>1.5000</b>evaluation loss",
                             "<b>1004</b>tokens per second", "<b>500</b>tokens", "<b>1.00 MiB</b>peak memory"})
    CHECK_THAT(page, Contains(figure));
  CHECK_THAT(page, Contains("<tr><td>communication<td class=n>40.000<td class=n>40.0"));
  CHECK_THAT(page, Contains("<tr><td>products<td class=n>60.000<td class=n>60.0"));
  CHECK_THAT(page, Contains("llama_pretrain --x '&lt;y&gt;'") && Contains("version 1, mesh dp=2"));
  CHECK_THAT(page, Contains("<pre>Once &lt;<b>upon</b></pre>"));
  CHECK_THAT(page, Contains("{\"again\":7,"));
  Json plots = plots_of(page);
  CHECK(values(curve(plots, "training loss", "training loss"), "y") == std::vector<double>{5, 2.5, 1.66667, 1.25, 1});
  CHECK(values(curve(plots, "training loss", "evaluation"), "x") == std::vector<double>{2, 4});
  CHECK(values(curve(plots, "gradient norm", "gradient norm"), "x") == std::vector<double>{1, 2, 4, 5});
  CHECK(values(curve(plots, "time of a step", "products"), "y") == std::vector<double>{0.06, 0.06, 0.06, 0.06, 0.06});
}

TEST_CASE("runs beside each other have a column and a colour each") {
  RunMetrics a = some_run(5), b = some_run(3);
  std::string page = run_page({{"a", &a}, {"b", &b}}, "a, b", "");
  Json plots = plots_of(page);
  CHECK(values(curve(plots, "training loss", "b"), "x") == std::vector<double>{1, 2, 3});
  CHECK(curve(plots, "training loss", "a").at("colour").dump() !=
        curve(plots, "training loss", "b").at("colour").dump());
  CHECK(values(curve(plots, "training loss", "a evaluation"), "y") == std::vector<double>{3, 1.5});
  auto lines = comparison({{"a", &a}, {"b", &b}});
  CHECK(lines[0] == std::vector<std::string>{"", "a", "b"});
  CHECK(lines[3] == std::vector<std::string>{"last loss", "1.0000", "1.6667"});
  CHECK(lines.back() == std::vector<std::string>{"ms of a step: products", "60.000", "60.000"});
}

TEST_CASE("a page asks for nothing outside of itself, and no text of a run becomes a tag") {
  RunMetrics m = some_run(2);
  m.run["command"] = "</script><script>alert(1)";
  std::string page = run_page({{"</script>", &m}, {"b", &m}}, "t", "");
  for (const char* outside : {"src=", "href=", "@import", "fetch(", "https:", "alert(1)</pre><script>"}) {
    INFO(outside);
    CHECK(page.find(outside) == page.npos);
  }
  size_t scripts = 0;
  for (size_t at = 0; (at = page.find("</script>", at)) != page.npos; ++at) ++scripts;
  CHECK(scripts == 2);
  CHECK_THAT(page, Contains("prefers-color-scheme: dark"));
}

TEST_CASE("of a long run what is drawn are values of its metrics, with the least and the greatest") {
  html::Curve c{"loss", "c0"};
  for (int64_t i = 0; i < 100001; ++i)
    c.x.push_back(i), c.y.push_back(i == 54321 ? 99 : i == 54400 ? -7 : double(i % 10));
  Json drawn = plots_of(html::plots({{"p", "", {c}}}))[0].at("curves")[0];
  CHECK(drawn.at("x").size() <= html::most_points);
  double least = 0, greatest = 0;
  for (size_t i = 0; i < drawn.at("x").size(); ++i) {
    int64_t x = drawn.at("x")[i];
    double y = drawn.at("y")[i];
    CHECK(y == c.y[size_t(x)]);
    if (i > 0) CHECK(x > drawn.at("x")[i - 1].get<int64_t>());
    least = std::min(least, y), greatest = std::max(greatest, y);
  }
  CHECK((least == -7 && greatest == 99));
}

TEST_CASE("a page is written while its run goes on, whole at any time, and at its end") {
  Folder folder;
  std::string file = folder / "run.html";
  RunPage page(file, "title", "");
  CHECK_THAT(read(file), Contains("<p>not begun</p>"));
  page.begin(1, {Json{{"step", 1}, {"loss", 4}}});
  page.line(Json{{"step", 2}, {"loss", 3}});
  CHECK_THAT(read(file), Contains("<p>under way</p>") && Contains("<b>2</b>steps") && Contains("\"y\":[4.0,3.0]"));
  page.line(Json{{"step", 3}, {"loss", 2}});  // not yet ten seconds later
  CHECK_THAT(read(file), Contains("<b>2</b>steps"));
  page.end("done");
  CHECK_THAT(read(file), Contains("<p>done</p>") && Contains("<b>3</b>steps") && Contains("\"again\":0"));
  CHECK_THROWS_WITH(RunPage(folder / "none/run.html", "", ""),
                    Contains("[RunPage] cannot write " + folder / "none/run.html") &&
                        Contains(": does its folder exist, and has the disk room?"));
}

TEST_CASE("counts and bytes are told in few digits") {
  struct Case {
    double n;
    const char* text;
  };
  for (const Case& c : {Case{0, "0"},
                        {9999, "9999"},
                        {10000, "10 k"},
                        {409600, "409.6 k"},
                        {999949, "999.9 k"},
                        {999960, "1 M"},
                        {8.03e9, "8.03 B"},
                        {4.05e11, "405 B"},
                        {2.5e15, "2500 T"}})
    CHECK(html::count_text(c.n) == c.text);
  CHECK(html::bytes_text(13107200) == "12.50 MiB");
  CHECK(html::bytes_text(double(int64_t(7) << 29)) == "3.50 GiB");
}
