// Work of a stream, collectives among it, that is launched as one.
#pragma once

#include "dtensor/cuda/runtime.h"

namespace dtensor {

// Made by Communicator::capture().
class CapturedGraph {
 public:
  virtual ~CapturedGraph() = default;
  // Gives the stream all of it again. Errors: the world has failed.
  virtual void launch(cuda::StreamHandle stream) = 0;
  virtual size_t nodes() const = 0;
};

}  // namespace dtensor
