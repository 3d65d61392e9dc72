// Texts at random: a parser gives a value that prints as a text of the same value, or an error of the right form.
#include <catch2/catch.hpp>

#include "placement/redistribution.h"
#include "placement/rule.h"
#include "placement/visualize.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

using Words = std::vector<std::string>;

const std::string& pick(Random& random, const Words& words) { return words[size_t(random.below(int(words.size())))]; }

std::string random_bytes(Random& random) {
  std::string text;
  for (int n = random.below(24); n; --n) text += char(random.below(256));
  return text;
}

// Some cuts, repetitions, insertions and changed bytes.
std::string mutate(std::string text, const Words& words, Random& random) {
  for (int n = random.below(4); n; --n) {
    size_t at = size_t(random.below(int(text.size()) + 1)), length = size_t(random.below(6));
    switch (random.below(4)) {
      case 0:
        text.erase(at, length);
        break;
      case 1:
        text.insert(at, text.substr(at, length));
        break;
      case 2:
        text.insert(at, pick(random, words));
        break;
      case 3:
        if (at < text.size()) text[at] = char(random.below(256));
    }
  }
  return text;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) out += c >= ' ' && c <= '~' ? std::string(1, c) : fmt::format("\\x{:02x}", uint8_t(c));
  return out;
}

bool begins_with_any(const char* message, const Words& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& n) { return std::string_view(message).starts_with("[" + n + "] "); });
}

// Whether `parse(text)` is a value rather than an error of one of the `names`; `use` gets the value.
template <class Parse, class Print, class Use>
bool parses(const std::string& text, const Words& names, Parse parse, Print print, Use use) {
  try {
    auto value = parse(text);
    std::string printed = print(value);
    if (!(parse(printed) == value)) FAIL("\"" << escaped(printed) << "\" is another value");
    use(value);
    return true;
  } catch (const Error& e) {
    if (!begins_with_any(e.what(), names)) FAIL("a message of the wrong form: " << escaped(e.what()));
    return false;
  }
}

const Words spec_words{"f32",
                       "bf16",
                       "bool",
                       "[",
                       "]",
                       ",",
                       "=",
                       "(",
                       ")",
                       " ",
                       "Shard",
                       "Shard(0)",
                       "Shard(-1)",
                       "Shard(7)",
                       "Partial",
                       "Partial()",
                       "Partial(max)",
                       "Partial(sum)",
                       "Replicate",
                       "dp=",
                       "tp=",
                       "pp",
                       "0",
                       "1",
                       "-",
                       "+1",
                       "07",
                       "281474976710656",
                       "9223372036854775807",
                       "99999999999999999999"};
const Words mesh_words{"dp", "tp", "=", ",",  "=1", "=2",    "dp=2",       ",tp=4",
                       "_",  " ",  "0", "-1", "+",  "65536", "4294967296", "99999999999999999999"};
const Words rule_words{"...", "->", ",", "[", "]", "(", ")", " ", "a", "b", "k", "z", "A", ".", "-", ">", "[]", "()"};

// Returns how many of the texts were values.
int fuzz_notation(int texts, uint64_t seed) {
  const MeshShape meshes[] = {MeshShape::parse("dp=2,tp=4"), MeshShape::parse("dp=3"),
                              MeshShape::parse("dp=1,tp=2,pp=3")};
  constexpr DType dtypes[] = {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean};
  int values = 0;
  for (int i = 0; i < texts; ++i) {
    Random random{mix(seed + uint64_t(i))};
    const MeshShape& mesh = meshes[random.below(3)];
    TensorSpec spec{dtypes[random.below(5)], {}, {}};
    for (int d = random.below(4); d; --d) spec.shape.push_back(random.below(9));
    for (int n = random.below(5); n && spec.shape.dims(); --n)  // in any order
      spec.layout = spec.layout.with_innermost(random.below(mesh.axes()), random.below(spec.shape.dims()));
    if (random.below(3) == 0)
      spec.layout = spec.layout.with(random.below(mesh.axes()), Partial(all_reductions[random.below(5)]));
    std::string whole = to_string(spec, mesh), layout = to_string(spec.layout, mesh), axes = to_string(mesh);
    if (!(parse_spec(whole, mesh) == spec))
      FAIL("seed " << seed + uint64_t(i) << ": " << whole << " is another tensor");
    bool bytes = random.below(8) == 0;
    whole = bytes ? random_bytes(random) : mutate(whole, spec_words, random);
    layout = bytes ? random_bytes(random) : mutate(layout, spec_words, random);
    axes = bytes ? random_bytes(random) : mutate(axes, mesh_words, random);
    INFO("seed " << seed + uint64_t(i) << ": \"" << escaped(whole) << "\", \"" << escaped(layout) << "\", \""
                 << escaped(axes) << "\" on " << to_string(mesh));
    values += parses(
        whole, {"parse_spec", "parse_layout", "Layout"}, [&](const std::string& t) { return parse_spec(t, mesh); },
        [&](const TensorSpec& s) { return to_string(s, mesh); },
        [&](const TensorSpec& s) {
          if (visualize(s, mesh).empty()) FAIL("no picture");
          for (const Layout& other : {Layout{}, spec.layout})
            if (s.shape.dims() == spec.shape.dims())
              if (plan_redistribution(mesh, s.shape, s.dtype, s.layout, other).bytes() < 0) FAIL("overflow");
        });
    values += parses(
        layout, {"parse_layout", "Layout"},
        [&](const std::string& t) { return parse_layout(t, mesh, spec.shape.dims()); },
        [&](const Layout& l) { return to_string(l, mesh); }, [](const Layout&) {});
    values += parses(
        axes, {"mesh", "MeshShape"}, [](const std::string& t) { return MeshShape::parse(t); },
        [](const MeshShape& m) { return to_string(m); },
        [](const MeshShape& m) {
          if (m.world() < 1) FAIL("a world of " << m.world());
        });
  }
  return values;
}

// A rule, and shapes that fit it, most of the time.
struct RandomRule {
  Random& random;
  std::string text;
  std::vector<Shape> shapes;

  explicit RandomRule(Random& r) : random(r) {
    Shape batch;
    for (int n = random.below(3); n; --n) batch.push_back(1 + random.below(3));
    for (int i = 1 + random.below(3); i; --i) operand(&batch), text += i > 1 ? "," : "->";
    for (int o = 1 + random.below(2); o; --o) operand(nullptr), text += o > 1 ? "," : "";
  }

  static int64_t size(char c) { return 1 + (c - 'a') % 3; }

  void operand(const Shape* batch) {
    Shape shape;
    if (random.below(2)) {
      text += random.below(4) ? "..." : "[...]";
      if (batch)
        for (int64_t n : *batch) shape.push_back(random.below(4) ? n : 1);
    }
    std::string letters = "abcdkmn";
    for (int n = random.below(4); n; --n) {
      auto letter = [&] {
        size_t at = size_t(random.below(int(letters.size())));
        char c = letters[at];
        letters.erase(at, 1);
        return c;
      };
      char c = letter();
      int form = random.below(6);
      char more = form == 0 ? letter() : c;
      text += form == 0 ? fmt::format("({}{})", c, more) : form == 1 ? fmt::format("[{}] ", c) : std::string(1, c);
      shape.push_back(form == 0 ? size(c) * size(more) : size(c));
      if (letters.empty()) break;
    }
    if (batch) shapes.push_back(shape);
  }
};

int fuzz_rules(int texts, uint64_t seed) {
  int bound = 0;
  for (int i = 0; i < texts; ++i) {
    Random random{mix(seed + uint64_t(i))};
    RandomRule made(random);
    std::string text = random.below(16) == 0 ? random_bytes(random) : made.text;
    if (random.below(2)) text = mutate(text, rule_words, random);
    std::vector<const Shape*> inputs;
    for (Shape& s : made.shapes) {
      if (random.below(16) == 0) s.push_back(random.below(5));
      if (random.below(16) == 0 && s.dims()) s[0] = random.below(5);
      inputs.push_back(random.below(16) ? &s : nullptr);
    }
    Rule rule{text};
    for (char c : std::string("abcdkmn"))
      if (random.below(2)) rule.sizes.emplace_back(c, RandomRule::size(c));
    std::string shapes;
    for (const Shape* s : inputs) shapes += s ? to_string(*s) + " " : "absent ";
    INFO("seed " << seed + uint64_t(i) << ": \"" << escaped(text) << "\" of " << shapes);
    try {
      BoundRule b("op", rule, inputs);
      if (rule_error(text)) FAIL("a malformed rule is bound");
      for (const Strategy& s : b.strategies(std::vector<Reduce>{Reduce::sum, Reduce::max})) {
        auto fits = [](const std::vector<Operand>& operands, const std::vector<Placement>& placements) {
          bool good = operands.size() == placements.size();
          for (size_t k = 0; good && k < operands.size(); ++k)
            good = !placements[k].is_shard() || placements[k].dim < operands[k].shape.dims();
          return good;
        };
        if (!fits(b.inputs(), s.inputs) || !fits(b.outputs(), s.outputs)) FAIL("a shard of no dimension");
      }
      ++bound;
    } catch (const Error& e) {
      if (!begins_with_any(e.what(), {"op", "Shape"})) FAIL("a message of the wrong form: " << escaped(e.what()));
    }
  }
  return bound;
}

}  // namespace

TEST_CASE("notation at random") { CHECK(fuzz_notation(20000, 1) > 15000); }
TEST_CASE("rules at random") { CHECK(fuzz_rules(30000, 1) > 5000); }

TEST_CASE("notation and rules at random, at length", "[nightly]") {
  fuzz_notation(5000000, 1000000);
  fuzz_rules(5000000, 1000000);
}
