// Rows of a table by id, and their gradient.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct Ids {
  const void* ids;  // i64 [count]
  int64_t count;
  int64_t begin, end;  // the rows here, of [0, size) on all ranks
  int64_t size;
};
// w [end - begin, d] -> y [count, d]: the row of each id, zeros where another rank has it, NaN outside of [0, size).
void embedding(StreamHandle stream, DType type, const Ids& ids, int64_t d, const void* w, void* y);
// dy [count, d] -> dw [end - begin, d]: the sum over the tokens of each id, in their order. Ids outside are skipped.
// `room`: embedding_room() i32.
int64_t embedding_room(const Ids& ids);
void embedding_backward(StreamHandle stream, DType type, const Ids& ids, int64_t d, const void* dy, void* dw,
                        void* room);

}  // namespace dtensor::cuda
