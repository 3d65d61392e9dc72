// A build without MPI.
#include "dtensor/mpi/launch_mpi.h"

namespace dtensor {

std::string mpi_unavailable() {
  return "this program was built without MPI: install libopenmpi-dev and openmpi-bin, then run CMake again and build";
}

void launch_mpi(const std::function<void(Rank&)>&, const MpiLaunchOptions&) {
  fail("[launch_mpi] {}", mpi_unavailable());
}

}  // namespace dtensor
