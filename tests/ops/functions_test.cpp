// Functions by name.
#include "ops/cards.h"

#include "tests/ops/helpers.h"

using namespace dtensor;

TEST_CASE("law 9: a function takes its own values and no others") {
  struct Case {
    const char* function;
    std::vector<Shape> operands;
    NamedValues values;
    const char* error;
  };
  const Case cases[] = {
      {"softmaxx", {{2}}, {}, "[call_function] there is no function \"softmaxx\"; the nearest is \"softmax\""},
      {"add", {{2}}, {}, "[add] tensor 1 is missing; 1 are given"},
      {"relu", {{2}, {2}}, {}, "[relu] takes 1 tensors, not 2"},
      {"relu", {{2}}, {{"inplace", true}}, "[relu] takes no \"inplace\"; it takes none"},
      {"sum", {{2}}, {{"axis", int64_t(0)}}, "[sum] takes no \"axis\"; it takes "},
      {"transpose", {{2, 3}}, {{"dim0", int64_t(0)}}, "[transpose] \"dim1\" is missing"},
      {"transpose", {{2, 3}}, {{"dim0", 0.5}, {"dim1", int64_t(1)}}, "[transpose] \"dim0=0.5\" is no integer"},
      {"rms_norm", {{2, 3}, {3}}, {{"eps", true}}, "[rms_norm] \"eps=true\" is no number"},
      {"sum", {{2}}, {{"keepdim", int64_t(1)}}, "[sum] \"keepdim=1\" is neither true nor false"},
      {"sum", {{2}}, {{"dim", 1.5}}, "[sum] \"dim=1.5\" is no list of integers"},
      {"cast", {{2}}, {{"dtype", int64_t(1)}}, "[cast] \"dtype=1\" is no element type"},
      {"view", {{2}}, {{"shape", std::vector<int64_t>(9, 1)}}, "[view] 9 dimensions; at most 8 are supported"},
      {"cross_entropy",
       {{2, 3}, {2}},
       {{"reduction", std::string("max")}},
       "[cross_entropy] reduction=max: it is none, sum or mean"},
  };
  OneRank one;
  for (const Case& c : cases) {
    std::vector<DistributedTensor> operands;
    for (const Shape& s : c.operands) operands.push_back(one(s));
    std::vector<const DistributedTensor*> pointers;
    for (const DistributedTensor& x : operands) pointers.push_back(&x);
    std::string error;
    try {
      ops::call_function(c.function, pointers, c.values);
    } catch (const Error& e) {
      error = e.what();
    }
    CHECK_THAT(error, Catch::StartsWith(c.error));
  }
}

TEST_CASE("law 9: a kernel that asks for a factor its rule lacks, and too many operands") {
  const Op asks = {.name = "asks",
                   .rule = "a->a",
                   .cpu = [](const Context& c, std::span<const Tensor>, std::span<Tensor>) { c.range('z'); }};
  OneRank one;
  DistributedTensor x = one({2});
  CHECK_THROWS_WITH(call(asks, {&x}), "[asks] the kernel asks for factor z, which the rule does not have");
  std::vector<const DistributedTensor*> many(65, &x);
  CHECK_THROWS_WITH(call_all(asks, many), "[asks] 65 operands; at most 64 are supported");
}
