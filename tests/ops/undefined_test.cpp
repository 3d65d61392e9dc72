// Undefined tensors as operands: a gradient that nothing led to is one.
#include <map>

#include "dtensor/creation.h"
#include "ops/cards.h"
#include "tests/ops/helpers.h"

using namespace dtensor;
using Catch::Contains;

namespace {

std::vector<std::string> split(const std::string& text, const std::string& by) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    size_t end = std::min(text.find(by, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + by.size();
  }
  return parts;
}

// One form of a function, by its signature: "where(condition, x, y)" takes three tensors, "add(x, y | value=)" two, or
// one and a value.
struct Form {
  size_t tensors = 0;
  std::vector<size_t> optional;
  NamedValues attributes;
};

const std::map<std::string, NamedValue> values = {
    {"value", 0.5},
    {"exponent", 2.0},
    {"base", 2.0},
    {"weight", 0.5},
    {"dim", int64_t(0)},
    {"dim0", int64_t(0)},
    {"dim1", int64_t(1)},
    {"start", int64_t(0)},
    {"length", int64_t(1)},
    {"index", int64_t(0)},
    {"k", int64_t(1)},
    {"chunks", int64_t(2)},
    {"num_classes", int64_t(4)},
    {"split_size", int64_t(2)},
    {"split_sizes", std::vector<int64_t>{2, 2}},
    {"shape", std::vector<int64_t>{4, 4}},
    {"sizes", std::vector<int64_t>{2, 2}},
    {"normalized_shape", std::vector<int64_t>{4}},
    {"dims", std::vector<int64_t>{0, 1}},
    {"repeats", std::vector<int64_t>{2, 2}},
    {"shifts", std::vector<int64_t>{1, 1}},
    {"dtype", DType::f64},
    {"equation", std::string("ij,jk->ik")},
};

void add_argument(Form& form, const std::string& argument) {
  std::vector<std::string> parts = split(argument, "=");
  if (parts.size() == 1)
    form.tensors += argument.ends_with("...") ? 2 : 1;
  else if (parts[1].empty())
    form.attributes.set(parts[0], values.at(parts[0]));
  else if (parts[1] == "none" && (parts[0] == "weight" || parts[0] == "bias" || parts[0] == "attn_mask" ||
                                  parts[0].ends_with("positions") || parts[0] == "k_lengths"))
    form.optional.push_back(form.tensors++);
}

std::vector<Form> forms_of(const ops::Function& f) {
  std::string signature(f.signature);
  size_t open = signature.find('(');
  std::string list = signature.substr(open + 1, signature.rfind(')') - open - 1);
  std::vector<std::string> alternatives = split(list, " | ");
  std::vector<Form> forms(1);
  for (const std::string& argument : split(alternatives[0], ", ")) add_argument(forms[0], argument);
  for (size_t i = 1; i < alternatives.size(); ++i) {
    std::vector<std::string> rest = split(alternatives[i], ", ");
    if (f.name == "einsum") {  // has both
      add_argument(forms[0], rest[0]);
      continue;
    }
    Form other = forms[0];
    if (other.attributes.empty()) --other.tensors;
    for (const std::string& argument : rest) add_argument(other, argument);
    forms.push_back(other);
  }
  return forms;
}

std::string error_of(const ops::Function& f, const std::vector<DistributedTensor>& operands, const NamedValues& a) {
  std::vector<const DistributedTensor*> pointers;
  for (const DistributedTensor& x : operands) pointers.push_back(&x);
  ops::Arguments arguments(f.signature, pointers, a);
  try {
    f.run(arguments);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("law 9: an undefined tensor in any required place of any function is an error that names the function") {
  OneRank one;
  DistributedTensor x = one({4, 4});
  int places = 0;
  for (const ops::Function& f : ops::functions())
    for (const Form& form : forms_of(f)) {
      INFO(f.signature << ", " << form.attributes.to_string());
      REQUIRE(form.tensors > 0);
      for (size_t place = 0; place < form.tensors; ++place) {
        if (std::find(form.optional.begin(), form.optional.end(), place) != form.optional.end()) continue;
        std::vector<DistributedTensor> operands(form.tensors, x);
        operands[place] = {};
        ++places;
        std::string error = error_of(f, operands, form.attributes);
        CHECK_THAT(error, Contains(f.name == "rsub" ? "[sub]" : "[" + std::string(f.name)));
        CHECK_THAT(error,
                   Contains(fmt::format("operand ")) && Contains(" is undefined (a gradient that nothing led to?)"));
      }
    }
  CHECK(places > 120);
}

TEST_CASE("an optional operand may be undefined: a bias, the weight of a norm, a mask") {
  OneRank one;
  DistributedTensor x = one({4, 4}), none, q = one({1, 2, 3, 4});
  CHECK(numbers(ops::linear(x, x, none).local()) == numbers(ops::linear(x, x).local()));
  CHECK(ops::linear_gelu(x, x, none).defined());
  CHECK(ops::layer_norm(x, {4}, none, none).defined());
  CHECK(ops::scaled_dot_product_attention(q, q, q, {.attn_mask = none}).defined());
}

TEST_CASE("a card may be called without an operand only where it says so") {
  OneRank one;
  DistributedTensor x = one({4, 4}), none;
  CHECK_THROWS_WITH(call(ops::add_op, {&x, nullptr}),
                    "[add] operand 1 is absent, which this card cannot do without (see Op::optional)");
  CHECK_THROWS_WITH(call(ops::matmul_op, {nullptr, &x}), Contains("[matmul] operand 0 is absent"));
  CHECK_THROWS_WITH(call(ops::maximum_op, {&x, &none}, ops::Number{1}), Contains("[maximum] operand 1 is undefined"));
  CHECK_THROWS_WITH(call(ops::maximum_op, {&x, nullptr}),
                    "[Attributes] the call has no attributes, which is not what the op takes");
}
