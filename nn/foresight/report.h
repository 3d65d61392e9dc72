// A forecast as a page to look at.
#pragma once

#include <string>

#include "nn/foresight/forecast.h"

namespace dtensor::nn {

// One self-contained HTML page, light or dark as its reader has it: figures, the mesh, memory over the step, the step's
// timeline where there is hardware, the model as a tree with its parameters' layouts, collectives with their reasons
// and, where the forecast has them, the alternatives that were rejected. Blocks that are alike are one row each.
std::string html_report(const Forecast& f, const std::string& title);
// Its parts after the figures, for other pages.
std::string html_sections(const Forecast& f);

}  // namespace dtensor::nn
