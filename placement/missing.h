// What ranks lack of their new parts when a tensor changes its layout, without asking each rank.
#pragma once

#include "placement/layout.h"

namespace dtensor {

// The most elements that any rank has under `to` and not under `from`; Partial counts as Replicate. Exact. Where axes
// divide all sizes it follows from the lists of axes. Else it is a search over the coordinates of ranks by halves,
// which leaves out a half where sizes and overlaps of parts bound what it can lack. Parts on a mesh axis come in few
// sizes, so few halves are opened: the time grows like the logarithm of the ranks. A search that has found `enough`
// ends with that.
int64_t most_missing(const MeshShape& mesh, const Shape& shape, const Layout& from, const Layout& to,
                     int64_t enough = INT64_MAX);

}  // namespace dtensor
