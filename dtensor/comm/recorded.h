// The communicator of dry runs, as any rank sees it.
#pragma once

#include <memory>

#include "dtensor/comm/communicator.h"

namespace dtensor {

// Of a world of `size` ranks in which nothing moves. Errors: there is no such rank.
std::shared_ptr<Communicator> make_recorded_communicator(int size, int rank);

}  // namespace dtensor
