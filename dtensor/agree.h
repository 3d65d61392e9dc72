// Errors that only some ranks have.
#pragma once

#include <functional>

#include "dtensor/device_mesh.h"

namespace dtensor {

// Runs f on every rank of the mesh, which all call it. Where it throws on some of them, all throw: the rank that had
// the error and is first among those its own exception, the others an Error "rank 1 failed: " with its text. So no rank
// goes on where another cannot: a file that is not there, a value that is out of range. f must not communicate. Costs
// one all-reduce of a number.
void agree_on_error(const DeviceMesh& mesh, const std::function<void()>& f);

}  // namespace dtensor
