// docs/ops.md is what the cards and functions say of themselves.
#include <fmt/format.h>
#include <catch2/catch.hpp>
#include <fstream>
#include <sstream>

#include "ops/all.h"
#include "ops/cards.h"

using namespace dtensor;

namespace {

std::string group(const std::vector<int>& g) { return fmt::format("{{{}}}", fmt::join(g, ",")); }

std::string passes_of(const Rule& r) {
  std::string text;
  auto add = [&](const std::string& s) { text += (text.empty() ? "" : "; ") + s; };
  for (const Pass& p : r.passes) {
    std::vector<std::string> what;
    for (auto [from, to] : p.reductions)
      what.push_back(std::string(name(from)) + (from == to ? "" : fmt::format(" as {}", name(to))));
    add(fmt::format("{} {}{}", what.size() == 5 ? "any" : fmt::to_string(fmt::join(what, ", ")), group(p.inputs),
                    p.outputs.empty() ? "" : " to output " + group(p.outputs)));
  }
  return text;
}

// The rule of the first sample: cards whose rule depends on shapes show that one.
Rule rule_of(const Op& op) {
  const Sample& s = op.sample.at(0);
  std::vector<const Shape*> shapes;
  for (const SampleInput& in : s.inputs) shapes.push_back(in.kind == SampleInput::Kind::absent ? nullptr : &in.shape);
  return bind_rule(op, shapes, s.attributes, DType::f64).rule();
}

std::string reference() {
  std::string text =
      "# Ops\n\nGenerated from the code: `tests/ops/reference_test.cpp` compares. Descriptions, shapes and errors are "
      "in the headers "
      "(`cmake --build build --target api_reference`).\n\n"
      "## Functions\n\nNames and arguments are PyTorch's; `dtensor_explain op NAME ...` says what each does to "
      "layouts.\n\n| function | |\n|---|---|\n";
  auto cell = [](std::string_view s) {  // "|" would end the cell
    std::string out;
    for (char c : s) out += c == '|' ? std::string("\\|") : std::string(1, c);
    return out;
  };
  for (const ops::Function& f : ops::functions())
    text += fmt::format("| `{}` | {} |\n", cell(f.signature), cell(f.doc));
  text +=
      "\n## Cards\n\nThe rule (the notation is in [adding an op](adding-an-op.md); one that depends on shapes is "
      "that of the "
      "card's first sample), which Partial inputs pass, and whether there is a gradient.\n\n"
      "| card | rule | Partial passes | gradient |\n|---|---|---|---|\n";
  for (const Op* op : ops::cards()) {
    if (op->composite) {
      text += fmt::format("| {} | composite | | {} |\n", op->name, op->gradient ? "yes" : "");
      continue;
    }
    Rule r = rule_of(*op);
    text += fmt::format("| {} | `{}`{} | {} | {} |\n", op->name, r.text, op->rule.function() ? " by shapes" : "",
                        passes_of(r), op->gradient ? "yes" : "");
  }
  return text;
}

}  // namespace

TEST_CASE("docs/ops.md is up to date") {
  std::ifstream file(DTENSOR_SOURCE_DIR "/docs/ops.md");
  std::stringstream have;
  have << file.rdbuf();
  std::string now = reference();
  if (have.str() != now) std::ofstream(DTENSOR_BIN_DIR "/../ops.md") << now;
  INFO("cp build/ops.md docs/ops.md");
  CHECK((have.str() == now));
}
