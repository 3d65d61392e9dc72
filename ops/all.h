// Every card, in one explicit list.
#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/dropout.h"
#include "ops/einsum.h"
#include "ops/embedding.h"
#include "ops/gather.h"
#include "ops/join.h"
#include "ops/layer_norm.h"
#include "ops/loss.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/order.h"
#include "ops/pointwise.h"
#include "ops/rearrange.h"
#include "ops/reduce.h"
#include "ops/scan.h"
#include "ops/slice.h"
#include "ops/softmax.h"
#include "ops/statistics.h"
#include "ops/view.h"

namespace dtensor::ops {

// For names, documents and the conformance test.
std::span<const Op* const> all();
// The card of that name; an error that names the nearest. `who` is the public function for the error.
const Op& find(std::string_view name, const char* who = "find");

}  // namespace dtensor::ops
