// Module paths in plans: "model.layers.*.mlp".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nn/module.h"

namespace dtensor::nn {

// "model.layers.*.mlp.*_proj" matches "model.layers.0.mlp.up_proj": * is any one segment, or any part of one.
bool matches(std::string_view pattern, std::string_view path);

// The modules that a pattern names. Errors: there are none, with the nearest name; `place` is where in the plan it is.
std::vector<Module*> find_modules(Module& model, const std::string& pattern, const char* place);

// The modules that a list of patterns names. Errors: also one that is named twice.
std::vector<Module*> find_modules(Module& model, const std::vector<std::string>& patterns, const char* place);

// Which modules the patterns leave out beside others like them, a sentence for each pattern:
//     place."model.layers.1": leaves out model.layers.0, which is like what it matches: name model.layers.* for all of
//     them
std::vector<std::string> left_out(Module& model, const std::vector<std::string>& patterns, const char* place);

// A path as the pattern of all that are like it: model.layers.*.mlp of model.layers.0.mlp.
std::string like_modules(std::string_view path);

}  // namespace dtensor::nn
