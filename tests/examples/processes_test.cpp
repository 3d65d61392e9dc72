// This program is built without MPI: dtensor/mpi/no_mpi.cpp is linked to it (tests/CMakeLists.txt).
#include "examples/pretrain_processes.h"

#include <catch2/catch.hpp>

using namespace dtensor;

TEST_CASE("a program that was built without MPI says what it lacks") {
  const std::string why =
      "this program was built without MPI: install libopenmpi-dev and openmpi-bin, then run CMake again and build";
  CHECK(mpi_unavailable() == why);
  CHECK_THROWS_WITH(processes_of_mpi(true, MeshShape::parse("dp=2")), "[llama_pretrain] --launch mpi: " + why);
  CHECK_THROWS_WITH(launch_mpi([](Rank&) {}), "[launch_mpi] " + why);
}
