// The tables of options in docs/ are what --help says.
#include <map>
#include <regex>
#include <set>

#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

using Options = std::map<std::string, std::string>;  // defaults by name; "" where there is none

// "  --lr FLOAT:NONNEGATIVE=0.001   peak learning rate"
Options of_help(const Words& command) {
  Options options;
  Result r = run(command[0], Words(command.begin() + 1, command.end()) + Words{"--help"});
  REQUIRE(r.code == 0);
  const std::regex line(
      R"(  (?:-\w,)?(--[a-z0-9-]+)(?: (?:[A-Z]+(?::(?:INT in \[[^\]]*\]|[^=\s]*))?|[a-z0-9|]+)(?:=(\S+))?)?.*)");
  for (const std::string& text : lines_of(r.out))
    if (std::smatch m; std::regex_match(text, m, line) && m[1] != "--help") options[m[1]] = m[2];
  return options;
}

// "| `--lr X` | 0.001 | peak learning rate |", below the heading, if there is one, and above the next.
Options of_page(const std::string& page, const std::string& heading) {
  Options options;
  bool here = heading.empty();
  const std::regex row(R"(\| `(--[a-z0-9-]+)[^|]*(?:\\\|[^|]*)*\| ?([^|]*?) ?\|.*)");
  for (const std::string& text : lines_of(read(source(page)))) {
    if (!heading.empty() && text.starts_with("## ")) here = text == "## " + heading;
    if (std::smatch m; here && std::regex_match(text, m, row)) options[m[1]] = m[2];
  }
  return options;
}

bool is_number(const std::string& text) {
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return !text.empty() && !*end;
}

}  // namespace

TEST_CASE("every program's table of options is what --help says, with its defaults") {
  struct Program {
    Words command;
    std::string page, heading;
  };
  const Program programs[] = {{{"llama_pretrain"}, "docs/llama_pretrain.md", ""},
                              {{"llama_generate"}, "docs/generation.md", ""},
                              {{"llama_convert"}, "docs/programs.md", "llama_convert"},
                              {{"checkpoint_inspect"}, "docs/programs.md", "checkpoint_inspect"},
                              {{"tokenizer_train"}, "docs/programs.md", "tokenizer_train"},
                              {{"tokenize"}, "docs/programs.md", "tokenize"},
                              {{"data_prepare"}, "docs/programs.md", "data_prepare"},
                              {{"report"}, "docs/programs.md", "report"},
                              {{"dtensor_plan", "check"}, "docs/programs.md", "dtensor_plan"},
                              {{"dtensor_plan", "cost"}, "docs/programs.md", "dtensor_plan"},
                              {{"dtensor_plan", "diff"}, "docs/programs.md", "dtensor_plan"},
                              {{"dtensor_explain"}, "docs/programs.md", "dtensor_explain"},
                              {{"dtensor_calibrate"}, "docs/programs.md", "dtensor_calibrate"}};
  std::set<std::string> told{"dtensor_bisect"};  // which has none
  for (const Program& p : programs) told.insert(p.command[0]);
  for (const auto& file : std::filesystem::directory_iterator(source("examples"))) {
    std::string name = file.path().stem().string();
    if (file.path().extension() == ".cpp" && !std::isdigit(name[0])) {
      INFO(name << " is a program without a table of its options");
      CHECK(told.contains(name));
      CHECK_THAT(read(source("docs/programs.md")), Contains("## " + name + "\n") || Contains("[" + name + "]("));
    }
  }
  for (const Program& p : programs) {
    Options help = of_help(p.command), page = of_page(p.page, p.heading);
    CHECK(help.size() > 0);
    for (const auto& [name, value] : help) {
      INFO(p.command[0] << " " << name << ": --help has it, " << p.page << " has not");
      CHECK(page.contains(name));
    }
    for (auto [name, value] : page) {
      INFO(p.command[0] << " " << name << ": " << p.page << " has it with the default " << value);
      REQUIRE(help.contains(name));
      bool is_code = value.size() > 1 && value.front() == '`' && value.find('`', 1) == value.size() - 1;
      if (is_code) value = value.substr(1, value.size() - 2);
      if (is_number(value))
        CHECK(std::stod(help[name]) == std::stod(value));
      else if (is_code)
        CHECK(help[name] == value);
    }
  }
}

// "| `eval` | `step`, `eval_loss` | ... |" of the section on metrics: fields by kind. A row without a kind is of the
// one above.
std::map<std::string, std::set<std::string>> fields_of_page() {
  std::map<std::string, std::set<std::string>> fields;
  std::string kind;
  bool here = false;
  const std::regex row(R"(\| ?(`(\w+)`|\(none\))? ?\| ((?:`\w+`,? ?)+)\|.*)"), word("`(\\w+)`");
  for (const std::string& line : lines_of(read(source("docs/formats.md")))) {
    if (line.starts_with("## ")) here = line == "## Metrics";
    std::smatch m;
    if (!here || !std::regex_match(line, m, row)) continue;
    if (m[1].matched) kind = m[2];
    std::string words = m[3];
    for (std::sregex_iterator w(words.begin(), words.end(), word), end; w != end; ++w) fields[kind].insert((*w)[1]);
  }
  return fields;
}

TEST_CASE("the lines of --metrics have the fields that docs/formats.md tells, and no others") {
  Folder folder;
  std::string text = folder.write("text.txt", some_text(9000)), file = folder / "m.jsonl";
  Result r = run("llama_pretrain", {"--model",          source("examples/configs/llama_tiny.json"),
                                    "--data",           text,
                                    "--steps",          "2",
                                    "--batch-size",     "4",
                                    "--seq-len",        "16",
                                    "--threads",        "1",
                                    "--metrics",        file,
                                    "--hash",           "--module-norms",
                                    "--eval-data",      text,
                                    "--sample-every",   "2",
                                    "--sample-tokens",  "2",
                                    "--checkpoint-dir", folder / "run"});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  std::map<std::string, std::set<std::string>> written;
  for (const std::string& line : lines_of(read(file))) {
    Json j = Json::parse(line);
    for (const auto& [key, value] : j.items())
      if (key != "kind") written[j.value("kind", "")].insert(key);
  }
  written[""].insert("skipped");  // of bad steps alone
  CHECK(written == fields_of_page());
}
