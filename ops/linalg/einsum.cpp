#include "ops/linalg/einsum.h"

#include <fmt/format.h>
#include <algorithm>
#include <cctype>
#include <map>

#include "ops/cards.h"
#include "ops/family/kernel.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

bool has(std::string_view term, char letter) { return term.find(letter) != std::string_view::npos; }

// The letters of `from` for which `keep` holds, in order.
template <class F>
std::string filtered(std::string_view from, F keep) {
  std::string s;
  std::copy_if(from.begin(), from.end(), std::back_inserter(s), keep);
  return s;
}

// "ab,bc->ac" and the kinds of its letters.
struct Pair {
  std::string a, b, out;
  explicit Pair(std::string_view equation) {
    size_t comma = equation.find(','), arrow = equation.find("->");
    a = equation.substr(0, comma);
    b = equation.substr(comma + 1, arrow - comma - 1);
    out = equation.substr(arrow + 2);
  }
  std::string batch() const {
    return filtered(out, [&](char c) { return has(a, c) && has(b, c); });
  }
  std::string rows() const {
    return filtered(out, [&](char c) { return !has(b, c); });
  }
  std::string columns() const {
    return filtered(out, [&](char c) { return !has(a, c); });
  }
  std::string contracted() const {
    return filtered(a, [&](char c) { return !has(out, c); });
  }
};

Rule einsum_rule(std::span<const Shape* const>, const Attributes& a) { return {a.as<Einsum>().equation}; }

// `x`, whose dimensions `term` names, as [batch, first, second]: each the product of its letters.
Tensor as_matrices(const Tensor& x, std::string_view term, std::initializer_list<std::string> groups) {
  std::vector<int> order;
  Shape shape;
  for (const std::string& group : groups) {
    int64_t n = 1;
    for (char c : group) order.push_back(int(term.find(c))), n *= x.size(order.back());
    shape.push_back(n);
  }
  return flattened(x.permute(order), shape);
}

void einsum_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Pair e(c.attributes.as<Einsum>().equation);
  Tensor x = in[0], y = in[1];
  if (size_t r = e.out.find_first_of(e.rows()), n = e.out.find_first_of(e.columns());
      r != std::string::npos && n < r)  // so the output needs no turn
    std::swap(e.a, e.b), std::swap(x, y);
  std::string batch = e.batch(), rows = e.rows(), columns = e.columns(), k = e.contracted(),
              made = batch + rows + columns;
  Tensor a = as_matrices(x, e.a, {batch, rows, k}), b = as_matrices(y, e.b, {batch, k, columns});
  Shape shape{a.size(0), a.size(1), b.size(2)};
  if (made == e.out) return multiply(c, a, b, out[0].view(shape), c.leaves(k));
  Tensor product(c.allocator, out[0].dtype(), shape);
  multiply(c, a, b, product, c.leaves(k));
  Shape dims;
  std::vector<int> order;
  for (char letter : made) dims.push_back(out[0].size(int(e.out.find(letter))));
  for (char letter : e.out) order.push_back(int(made.find(letter)));
  copy(product.view(dims).permute(order), out[0]);
}

void einsum_gradient(Gradient& g) {
  Pair e(g.attributes().as<Einsum>().equation);
  const DistributedTensor& dy = g.of_output();
  auto product = [&](int i, const std::string& other, const std::string& own) {
    return call(einsum_op, {&dy, &g.input(1 - i)}, Einsum{e.out + "," + other + "->" + own}, {g.wanted(i)});
  };
  if (g.needs(0)) g.set(0, product(0, e.b, e.a));
  if (g.needs(1)) g.set(1, product(1, e.a, e.b));
}

// An operand and the letters of its dimensions.
struct Term {
  DistributedTensor x;
  std::string letters;
};

// x with the letters of `to`: others are summed.
DistributedTensor arranged(const Term& t, std::string_view to) {
  std::vector<int64_t> summed, order;
  std::string left;
  for (size_t d = 0; d < t.letters.size(); ++d)
    if (has(to, t.letters[d]))
      left += t.letters[d];
    else
      summed.push_back(int64_t(d));
  for (char c : to) order.push_back(int64_t(left.find(c)));
  DistributedTensor x = summed.empty() ? t.x : sum(t.x, summed);
  return left == to ? x : permute(x, order);
}

// One card's cache serves all equations that differ in names only: letters become a, b, c... as they appear.
Term product(const Term& x, const Term& y, std::string_view out) {
  std::string seen;
  auto renamed = [&](std::string_view term) {
    std::string s;
    for (char c : term) {
      if (!has(seen, c)) seen += c;
      s += char('a' + seen.find(c));
    }
    return s;
  };
  std::string equation = renamed(x.letters) + "," + renamed(y.letters);
  equation += "->" + renamed(out);
  return {call(einsum_op, {&x.x, &y.x}, Einsum{equation}), std::string(out)};
}

// An equation as it was written, for errors, and its terms. A dimension of "..." is a letter below 'A', the rightmost
// one '@', the next '?': free of the others, and before them in the implicit output.
class Equation {
 public:
  Equation(std::string_view text, std::span<const DistributedTensor* const> operands) : text_(text) {
    std::string plain = filtered(text, [](char c) { return c != ' '; });
    size_t arrow = plain.find("->");
    std::vector<std::string> terms = split(plain.substr(0, arrow));
    check(terms.size() == operands.size(), "[einsum] \"{}\" names {} operands, and {} are given", text, terms.size(),
          operands.size());
    for (size_t i = 0; i < terms.size(); ++i) {
      check(operands[i] && operands[i]->defined(), "[einsum] operand {} is missing", i);
      inputs.push_back({*operands[i], letters(terms[i], int(i), operands[i])});
    }
    out = arrow == std::string::npos ? implicit() : letters(plain.substr(arrow + 2), -1, nullptr);
    for (char c : out)
      check(std::any_of(inputs.begin(), inputs.end(), [&](const Term& t) { return has(t.letters, c); }),
            "[einsum] \"{}\": the output has '{}', which is on no operand", text, c);
    broadcast();
  }

  std::vector<Term> inputs;
  std::string out;

 private:
  static constexpr char last_dot = '@';

  static std::vector<std::string> split(std::string_view list) {
    std::vector<std::string> terms(1);
    for (char c : list)
      if (c == ',')
        terms.emplace_back();
      else
        terms.back() += c;
    return terms;
  }

  // The letters of one term. `i`: which operand, -1 for the output, whose "..." is the longest of all operands.
  std::string letters(std::string_view term, int i, const DistributedTensor* x) {
    std::string where = i < 0 ? "the output" : fmt::format("operand {}", i);
    size_t dots = term.find("...");
    std::string named(term);
    if (dots != std::string_view::npos) named.erase(dots, 3);
    for (size_t k = 0; k < named.size(); ++k) {
      char c = named[k];
      check(std::isalpha(static_cast<unsigned char>(c)),
            "[einsum] \"{}\": {} has '{}'; a term is letters and at most one \"...\"", text_, where, c);
      check(named.find(c, k + 1) == std::string::npos,
            "[einsum] \"{}\": {} has '{}' twice; diagonals are not supported", text_, where, c);
    }
    int open = most_dots_;
    if (x) {
      open = x->dims() - int(named.size());
      bool fits = dots == std::string_view::npos ? open == 0 : open >= 0;
      check(fits, "[einsum] \"{}\": {} has {} dimensions, {}, and \"{}\" names {}", text_, where, x->dims(), *x, term,
            named.size());
      most_dots_ = std::max(most_dots_, open);
    }
    if (dots == std::string_view::npos) return named;
    for (int d = 0; d < open; ++d) named.insert(named.begin() + int64_t(dots), char(last_dot - d));
    return named;
  }

  std::string implicit() const {
    std::map<char, int> count;
    for (const Term& t : inputs)
      for (char c : t.letters) ++count[c];
    std::string s;
    for (auto [c, n] : count)
      if (n == 1 || c <= last_dot) s += c;
    return s;
  }

  // A dimension of size 1 that others have in full goes: it says nothing.
  void broadcast() {
    std::map<char, std::pair<int64_t, size_t>> sizes;  // and the operand that tells it
    for (size_t i = 0; i < inputs.size(); ++i)
      for (size_t d = 0; d < inputs[i].letters.size(); ++d) {
        char c = inputs[i].letters[d];
        int64_t n = inputs[i].x.shape()[int(d)];
        auto [at, added] = sizes.try_emplace(c, n, i);
        if (added || n == 1) continue;
        auto& [size, from] = at->second;
        check(size == 1 || size == n, "[einsum] \"{}\": '{}' is {} in operand {} and {} in operand {}", text_,
              c <= last_dot ? "..." : std::string(1, c), size, from, n, i);
        size = n, from = i;
      }
    for (Term& t : inputs) {
      Shape shape;
      std::string left;
      for (size_t d = 0; d < t.letters.size(); ++d)
        if (int64_t n = t.x.shape()[int(d)]; n != 1 || sizes[t.letters[d]].first == 1)
          shape.push_back(n), left += t.letters[d];
      if (left.size() != t.letters.size()) t = {reshape(t.x, shape), left};
    }
  }

  std::string_view text_;
  int most_dots_ = 0;
};

Sample sample(const char* equation, Shape a, Shape b) {
  using Kind = SampleInput::Kind;
  return {{SampleInput(Kind::normal, a), SampleInput(Kind::normal, b)}, Einsum{std::string(equation)}};
}
}  // namespace

const Op einsum_op = {
    .name = "einsum",
    .functions = {function("einsum(operands... | equation=)", "a sum of products, by letters for the dimensions",
                           [](Arguments& a) -> List {
                             List operands = a.tensors();
                             std::vector<const DistributedTensor*> list;
                             for (const DistributedTensor& x : operands) list.push_back(&x);
                             return {einsum(a.text("equation"), list)};
                           })},
    .rule = einsum_rule,
    .passes = {linear_in({0}), linear_in({1})},
    .types = product_types,
    .strided = true,
    .f32_sums = true,
    .cpu = einsum_kernel,
    .gradient = einsum_gradient,
    .keeps = {.inputs = {0, 1}},
    .sample = {sample("ab,bc->ac", {5, 7}, {7, 3}), sample("abc,dcb->da", {2, 5, 3}, {4, 3, 5}),
               sample("abcd,aebd->eabc", {2, 3, 5, 4}, {2, 6, 3, 4}), sample("a,b->ba", {3}, {5}),
               sample("ab,ba->", {3, 5}, {5, 3}), sample("ab,ab->ba", {4, 3}, {4, 3})}};

namespace {
constexpr const Op* einsum_ops[] = {&einsum_op};
}  // namespace
const Cards einsum_cards = einsum_ops;

DistributedTensor einsum(std::string_view equation, std::span<const DistributedTensor* const> operands) {
  for (size_t i = 0; i < operands.size(); ++i) check_defined("einsum", *operands[i], i);
  Equation e(equation, operands);
  std::vector<Term>& terms = e.inputs;
  // The letters of `of` that the output or a term from `next` on still asks for.
  auto wanted = [&](std::string_view of, size_t next) {
    return filtered(of, [&](char c) {
      return has(e.out, c) ||
             std::any_of(terms.begin() + int64_t(next), terms.end(), [&](const Term& t) { return has(t.letters, c); });
    });
  };
  Term left = terms[0];
  for (size_t i = 1; i < terms.size(); ++i) {
    Term right = terms[i];
    std::string later_left = wanted(left.letters, i + 1), later_right = wanted(right.letters, i + 1);
    auto in_left = [&](char c) { return has(left.letters, c); };
    auto in_right = [&](char c) { return has(right.letters, c); };
    // A letter of one operand alone is summed before: the product then only contracts.
    std::string a = filtered(left.letters, [&](char c) { return in_right(c) || has(later_left, c); });
    std::string b = filtered(right.letters, [&](char c) { return in_left(c) || has(later_right, c); });
    std::string out = wanted(a + filtered(b, [&](char c) { return !has(a, c); }), i + 1);
    if (i + 1 == terms.size()) out = e.out;
    left = product({arranged(left, a), a}, {arranged(right, b), b}, out);
  }
  return arranged(left, e.out);
}

DistributedTensor einsum(std::string_view equation, std::initializer_list<const DistributedTensor*> operands) {
  return einsum(equation, std::span(operands.begin(), operands.size()));
}

}  // namespace dtensor::ops
