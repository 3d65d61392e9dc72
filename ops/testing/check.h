// Law 2 for one card: running the plain kernel on each rank's part under any strategy that its rule offers, then
// joining the parts, gives the unsharded result; and its gradient is the derivative. For the cards of this library and
// yours.
#pragma once

#include <string>
#include <vector>

#include "ops/core/op.h"

namespace dtensor::testing {

struct CheckOptions {
  std::vector<int> worlds = {2, 3, 4};                       // sizes of one axis; ranks are simulated one by one
  std::vector<int> launched = {2, 3};                        // the same, as threads with real communicators
  std::vector<std::string> meshes = {"x=2,y=2", "x=2,y=3"};  // launched too, inputs in random layouts
  int layouts = 3;                                           // random ones for each sample and mesh
  bool search = true;                                        // for sound strategies that are not offered
  uint64_t seed = 1;                                         // of values, contributions and layouts
};

struct Report {
  std::string op;
  int strategies = 0;                 // distinct ones that were offered and run
  int cases = 0;                      // runs that were compared: sample x strategy x ranks
  std::vector<std::string> failures;  // what is wrong, with the sample, the strategy and the first wrong element
  // Sound on 2 and 3 ranks for all samples where they exist, and not offered. "..." is any of its dimensions:
  // "Shard(...),Partial(sum)->Shard(...)". Fewer bytes might move if they were; nothing is wrong.
  std::vector<std::string> not_offered;
  // Law 6: factors that, made 8 or 200 times as large and split into 2, 4 or 8 equal parts, give other float32 bits
  // than the whole: "b of sample 1 f64[4,5,3] (dims=0,1): output 0".
  std::vector<std::string> other_bits;

  bool ok() const { return failures.empty(); }
};

// Runs everything below for each of the card's samples, and for the samples with each factor's size set to 0, 1 and 4:
// - in float64: the outputs' shapes and that every element is written; strided inputs where the card takes them;
//   dimensions of "..." that broadcast, or are refused;
// - each strategy, on simulated ranks; Partial inputs are random contributions, and identities beside the value;
// - in float32: close to float64, and the same bits in equal parts;
// - the gradient: given what the card keeps and nothing else, against differences; that all it keeps is read;
// - outputs and gradients through the dispatcher on launched ranks, inputs laid out by each strategy and at random.
// Outputs after the first that the gradient keeps are taken for auxiliary ones, of which nobody wants a gradient.
// Composites have no rule: they are launched only, inputs sharded in every dimension.
// A kernel may be run on any parts that the rule allows: it must not read outside of them.
Report check(const Op& card, const CheckOptions& options = {});

std::string to_string(const Report& report);

}  // namespace dtensor::testing
