// Who this process is among those that a launcher started.
#pragma once

#include <functional>
#include <string>

namespace dtensor {

struct Environment {
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;  // among the ranks on this host
  std::string address = "127.0.0.1";    // of rank 0's host
  int port = 29500;                     // free on that host
  std::string launcher = "none";        // whose variables were read

  bool one_host() const { return local_world == world; }
};

// Reads the variables of the launcher that started this process, the first of these that is there:
//   torchrun          RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
//   Open MPI          OMPI_COMM_WORLD_RANK .._SIZE .._LOCAL_RANK .._LOCAL_SIZE
//   MPICH, Intel MPI  PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS
//   Slurm             SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_TASKS_PER_NODE SLURM_NODEID
// and from all MASTER_ADDR and MASTER_PORT. So mpirun starts the ranks, but no MPI library is needed or linked.
//   MASTER_ADDR  must be set, as rank 0's host, unless all ranks are on one host
//   MASTER_PORT  29500 unless set. Where torchrun keeps that port for its own store (TORCHELASTIC_USE_AGENT_STORE),
//                the next one is taken.
// RANK and WORLD_SIZE alone, set by hand, mean ranks of one host unless MASTER_ADDR is set.
// Errors: no launcher; a variable that is missing or makes no sense.
Environment read_environment();
bool was_launched();  // whether the variables of one of these are there
Environment read_environment(const std::function<const char*(const char*)>& variable);

}  // namespace dtensor
