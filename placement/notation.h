// The one notation of layouts, in code, errors, documents and JSON: f32[8,16] dp=Shard(0) tp=Replicate.
#pragma once

#include <string>
#include <string_view>

#include "placement/dtype.h"
#include "placement/layout.h"

namespace dtensor {

// A tensor as everybody sees it: element type, global shape, layout.
struct TensorSpec {
  DType dtype = DType::f32;
  Shape shape;
  Layout layout;
  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

// "dp=Shard(0) tp=Replicate": every axis, in mesh order. Where axes split one dimension in another order, they are
// written in sharding order: "tp=Shard(0) dp=Shard(0)" is tp outermost.
std::string to_string(const Layout& layout, const MeshShape& mesh);
// "f32[8,16] dp=Shard(0) tp=Replicate"
std::string to_string(const TensorSpec& spec, const MeshShape& mesh);

// The inverses. Axes that are not named are Replicate; "*" names all of these, as in "tp=Shard(0) *=Partial". Negative
// dimensions count from the back of `dims`.
// Errors: an unknown axis, placement or dtype; an axis named twice; a dimension that does not exist; more than 2^48
// elements, dimensions of size 0 counted as 1.
Layout parse_layout(std::string_view text, const MeshShape& mesh, int dims);
TensorSpec parse_spec(std::string_view text, const MeshShape& mesh);

// The layout that `text` makes of `from`, for redistribute(): axes that are not named lie as they do, so that
// "tp=Replicate" gathers over tp alone, and "tp=Replicate *=Replicate" over all. Errors: as above; a text that names
// nothing.
Layout parse_target(std::string_view text, const MeshShape& mesh, int dims, const Layout& from);

}  // namespace dtensor
