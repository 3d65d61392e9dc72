// How a distributed tensor falls into pieces that are written once each.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "placement/notation.h"

namespace dtensor::nn {

// The box of a tensor that one rank writes.
struct Piece {
  int rank;
  Box box;
};

// Each rank's piece of a tensor, those that are not empty, by rank: its own part; and where several ranks hold the same
// part, an equal share of it each, or the first of them all of it where it is small. Errors: a layout that is Partial.
std::vector<Piece> pieces_of(const MeshShape& mesh, const TensorSpec& spec);

// The bytes of a tensor of a shape that a file says; none where they, or those of its sizes other than 0, are more than
// can be counted.
std::optional<int64_t> countable_bytes(const Shape& shape, int64_t itemsize);

// What keeps the boxes from tiling a tensor of this shape exactly, without overlap or gap; "" where they do.
std::string why_no_tiling(const Shape& shape, std::span<const Box> boxes);

}  // namespace dtensor::nn
