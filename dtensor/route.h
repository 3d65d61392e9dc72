// What one rank gives and takes in one step of a redistribution that communicates.
#pragma once

#include <vector>

#include "placement/step.h"

namespace dtensor {

struct Parcel {
  int peer;  // its index in the step's group
  Box box;   // global indices
};

// Elements travel parcel after parcel, in the order of peers, each in row-major order. Where this is how the whole part
// lies in memory, nothing needs to be packed or unpacked, and the list is empty.
struct Route {
  Box before, now;  // this rank's part
  std::vector<Parcel> send, receive;
  bool packs = false, unpacks = false;
  std::vector<int64_t> counts = {}, out_counts = {};  // as in Buffers
};

// `rank` is one of the mesh. In an exchange every rank reads each piece that it lacks from one of the ranks that hold
// it, which share those who ask for it in turn; all ranks find the same by themselves. Takes time in proportion to the
// size of the group.
Route find_route(const MeshShape& mesh, const Shape& shape, const Step& step, int rank);

}  // namespace dtensor
