#include "nn/checkpoint/pieces.h"

#include <algorithm>

namespace dtensor::nn {
namespace {

std::string text_of(const Box& box) {
  std::string text = "[";
  for (int d = 0; d < box.dims; ++d) text += fmt::format("{}{}:{}", d ? "," : "", box[d].begin, box[d].end);
  return text + "]";
}

// Cuts the boxes where no box lies across, along any dimension, until one is left that must be all of `whole`.
std::string tile(const Box& whole, std::span<Box> boxes) {
  if (boxes.empty()) return fmt::format("nothing covers {}", text_of(whole));
  if (boxes.size() == 1)
    return boxes[0] == whole ? "" : fmt::format("{} alone is to cover {}", text_of(boxes[0]), text_of(whole));
  for (int d = 0; d < whole.dims; ++d) {
    std::sort(boxes.begin(), boxes.end(), [d](const Box& a, const Box& b) { return a[d].begin < b[d].begin; });
    int64_t end = boxes[0][d].end;
    bool cut = false;
    size_t first = 0;
    Box part = whole;
    for (size_t i = 1; i <= boxes.size(); ++i) {
      bool last = i == boxes.size();
      if (!last && boxes[i][d].begin < end) {
        end = std::max(end, boxes[i][d].end);
        continue;
      }
      if (last && !cut) break;
      part[d].end = last ? whole[d].end : boxes[i][d].begin;
      if (std::string wrong = tile(part, boxes.subspan(first, i - first)); !wrong.empty()) return wrong;
      if (last) return "";
      cut = true, first = i;
      part[d].begin = part[d].end, end = boxes[i][d].end;
    }
  }
  return fmt::format("{} and {} overlap, or are cut by no line", text_of(boxes[0]), text_of(boxes[1]));
}

}  // namespace

std::vector<Piece> pieces_of(const MeshShape& mesh, const TensorSpec& spec) {
  constexpr int64_t small = 1 << 16;  // bytes, of a share
  if (spec.layout.partial) fail("[checkpoint] {} is Partial: redistribute it first", to_string(spec, mesh));
  // A share is the part divided further, along dimension 0.
  AxisSet replicas = mesh.all() & ~spec.layout.sharded();
  Layout layout = spec.layout;
  int64_t bytes = largest_part(mesh, spec.shape, layout) * itemsize(spec.dtype);
  bool divide = spec.shape.dims() > 0 && bytes >= small * mesh.product(replicas);
  for (int axis = 0; divide && axis < mesh.axes(); ++axis)
    if (has(replicas, axis)) layout = layout.with_innermost(axis, 0);
  std::vector<Piece> pieces;
  for (int rank = 0; rank < mesh.world(); ++rank) {
    if (!divide && mesh.index_in(rank, replicas) != 0) continue;
    Box box = local_box(mesh, spec.shape, layout, rank);
    if (box.numel() > 0) pieces.push_back({rank, box});
  }
  return pieces;
}

std::optional<int64_t> countable_bytes(const Shape& shape, int64_t itemsize) {
  int64_t bytes = itemsize;
  for (int64_t n : shape)
    if (n != 0 && __builtin_mul_overflow(bytes, n, &bytes)) return {};
  return numel(shape) == 0 ? 0 : bytes;
}

std::string why_no_tiling(const Shape& shape, std::span<const Box> boxes) {
  Box whole = whole_box(shape);
  for (const Box& b : boxes) {
    bool fits = b.dims == whole.dims;
    for (int d = 0; fits && d < b.dims; ++d)
      fits = b[d].begin >= 0 && b[d].begin < b[d].end && b[d].end <= whole[d].end;
    if (!fits) return fmt::format("{} is no part of {}", text_of(b), shape);
  }
  if (whole.numel() == 0) return boxes.empty() ? "" : "there is nothing to cover";
  std::vector<Box> list(boxes.begin(), boxes.end());
  return tile(whole, list);
}

}  // namespace dtensor::nn
