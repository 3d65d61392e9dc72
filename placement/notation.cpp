#include "placement/notation.h"

#include <charconv>

namespace dtensor {

std::string to_string(Placement p) {
  if (p.is_shard()) return fmt::format("Shard({})", p.dim);
  if (p.is_partial()) return fmt::format("Partial({})", name(p.reduce));
  return "Replicate";
}

namespace {

// A whole integer, or false.
bool parse_int(std::string_view text, int64_t& value) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// What stands between "name(" and ")", or nothing if `text` is not of that form.
bool argument(std::string_view text, std::string_view name, std::string_view& inside) {
  if (!text.starts_with(name) || text.size() < name.size() + 2 || text[name.size()] != '(' || text.back() != ')')
    return false;
  inside = text.substr(name.size() + 1, text.size() - name.size() - 2);
  return true;
}

std::string_view next_word(std::string_view& text) {
  size_t begin = std::min(text.find_first_not_of(' '), text.size());
  size_t end = std::min(text.find(' ', begin), text.size());
  std::string_view word = text.substr(begin, end - begin);
  text.remove_prefix(end);
  return word;
}

}  // namespace

Placement parse_placement(std::string_view text, const char* who) {
  std::string_view inside;
  int64_t dim;
  if (text == "Replicate" || text == "Replicate()") return Replicate();
  if (text == "Partial" || text == "Partial()") return Partial();
  if (argument(text, "Shard", inside) && parse_int(inside, dim) && dim >= -max_dims && dim < max_dims)
    return Shard(int(dim));
  if (argument(text, "Partial", inside))
    for (Reduce r : {Reduce::sum, Reduce::avg, Reduce::product, Reduce::min, Reduce::max})
      if (inside == name(r)) return Partial(r);
  fail("[{}] \"{}\" is no placement: write Replicate, Shard(dim), or Partial(sum|avg|product|min|max)", who, text);
}

std::string to_string(const Layout& layout, const MeshShape& mesh) {
  // The axes of one dimension keep the places that they have in mesh order, but stand there in sharding order.
  std::array<int, max_axes> order{};
  for (int a = 0; a < mesh.axes(); ++a) order[size_t(a)] = a;
  for (const AxisList& list : layout.split) {
    int next = 0;
    for (int a = 0; a < mesh.axes(); ++a)
      if (has(list.set(), a)) order[size_t(a)] = list.axis[size_t(next++)];
  }
  std::string text;
  for (int i = 0; i < mesh.axes(); ++i) {
    int a = order[size_t(i)];
    text += fmt::format("{}{}={}", i ? " " : "", mesh.name(a), to_string(layout[a]));
  }
  return text;
}

std::string to_string(const TensorSpec& spec, const MeshShape& mesh) {
  std::string text = fmt::format("{}{}", name(spec.dtype), to_string(spec.shape));
  return mesh.axes() ? text + " " + to_string(spec.layout, mesh) : text;
}

namespace {

// What a text names, in its order, which is sharding order. The axes of "*" stand where it does, in mesh order.
std::vector<AxisPlacement> parse_placements(const char* who, std::string_view text, const MeshShape& mesh, int dims) {
  constexpr int rest = -1;
  std::vector<AxisPlacement> list;
  AxisSet seen = 0;
  for (std::string_view word = next_word(text); !word.empty(); word = next_word(text)) {
    size_t equals = word.find('=');
    check(equals != std::string_view::npos, "[{}] \"{}\" is no axis and placement: write as in tp=Shard(0)", who, word);
    std::string_view name = word.substr(0, equals);
    int axis = name == "*" ? rest : mesh.axis(name, who);
    for (const AxisPlacement& named : list) check(named.axis != axis, "[{}] axis \"{}\" is named twice", who, name);
    if (axis != rest) seen |= axis_bit(axis);
    Placement p = parse_placement(word.substr(equals + 1), who);
    if (p.is_shard()) p.dim = normalize_dim(who, p.dim, dims);
    list.push_back({axis, p});
  }
  std::vector<AxisPlacement> all;
  for (const AxisPlacement& named : list) {
    if (named.axis != rest) all.push_back(named);
    for (int a = 0; named.axis == rest && a < mesh.axes(); ++a)
      if (!has(seen, a)) all.push_back({a, named.placement});
  }
  return all;
}

}  // namespace

Layout parse_layout(std::string_view text, const MeshShape& mesh, int dims) {
  return Layout().with(parse_placements("parse_layout", text, mesh, dims));
}

Layout parse_target(std::string_view text, const MeshShape& mesh, int dims, const Layout& from) {
  std::vector<AxisPlacement> named = parse_placements("redistribute", text, mesh, dims);
  check(!named.empty() || mesh.axes() == 0, "[redistribute] \"{}\" names no axis of {}: write as in {}=Replicate", text,
        mesh, mesh.axes() ? mesh.name(0) : "");
  return from.with(named);
}

// Costs count bytes times ranks in 63 bits.
constexpr int64_t max_elements = int64_t(1) << 48;

TensorSpec parse_spec(std::string_view text, const MeshShape& mesh) {
  std::string_view rest = text, word = next_word(rest);
  size_t bracket = word.find('[');
  TensorSpec spec;
  bool known = false;
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (word.substr(0, bracket) == name(t)) spec.dtype = t, known = true;
  int64_t elements = 1;
  bool ok = known && bracket != std::string_view::npos && word.back() == ']';
  if (ok) {
    std::string_view sizes = word.substr(bracket + 1, word.size() - bracket - 2);
    while (ok && !sizes.empty()) {
      size_t comma = std::min(sizes.find(','), sizes.size());
      int64_t n = 0;
      ok = parse_int(sizes.substr(0, comma), n) && n >= 0 && (comma == sizes.size() || comma + 1 < sizes.size());
      if (ok) {
        check(spec.shape.dims() < max_dims, "[parse_spec] \"{}\" has more than {} dimensions", text, max_dims);
        check(n <= max_elements / elements, "[parse_spec] \"{}\" has more than 2^48 elements", text);
        spec.shape.push_back(n), elements *= std::max<int64_t>(n, 1);
      }
      sizes.remove_prefix(std::min(comma + 1, sizes.size()));
    }
  }
  check(ok, "[parse_spec] \"{}\" is no tensor: write as in f32[8,16] dp=Shard(0) (dtypes f32 f64 bf16 i64 bool)", text);
  spec.layout = parse_layout(rest, mesh, spec.shape.dims());
  return spec;
}

}  // namespace dtensor
