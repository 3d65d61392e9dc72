#include "dtensor/comm/environment.h"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <map>

#include "placement/error.h"

using namespace dtensor;
using Catch::Matchers::Contains;

namespace {

using Variables = std::map<std::string, std::string>;

Environment read(const Variables& set) {
  return read_environment([&](const char* name) {
    auto it = set.find(name);
    return it == set.end() ? nullptr : it->second.c_str();
  });
}

Variables torchrun(const Variables& more = {}) {
  Variables all{{"RANK", "5"},         {"WORLD_SIZE", "8"},   {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"},
                {"MASTER_ADDR", "h0"}, {"MASTER_PORT", "300"}};
  for (auto& [name, value] : more) all[name] = value;
  return all;
}

Variables slurm(const std::string& tasks, const std::string& node, const Variables& more = {}) {
  Variables all{{"SLURM_PROCID", "6"},  {"SLURM_STEP_NUM_TASKS", "12"}, {"SLURM_LOCALID", "0"},
                {"SLURM_NODEID", node}, {"MASTER_ADDR", "h0"},          {"SLURM_STEP_TASKS_PER_NODE", tasks}};
  for (auto& [name, value] : more) all[name] = value;
  return all;
}

}  // namespace

TEST_CASE("the environment is read from each launcher's variables") {
  const Variables open_mpi{{"OMPI_COMM_WORLD_RANK", "2"},
                           {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                           {"SLURM_PROCID", "0"}};
  const Variables mpich{{"PMI_RANK", "3"},        {"PMI_SIZE", "4"},          {"MPI_LOCALRANKID", "1"},
                        {"MPI_LOCALNRANKS", "2"}, {"MASTER_ADDR", "fe80::1"}, {"SLURM_PROCID", "0"}};
  struct Case {
    Variables set;
    Environment e;
  };
  for (const Case& c : std::vector<Case>{
           {torchrun(), {5, 8, 1, 4, "h0", 300, "torchrun"}},
           {torchrun({{"TORCHELASTIC_USE_AGENT_STORE", "True"}}), {5, 8, 1, 4, "h0", 301, "torchrun"}},
           {torchrun({{"TORCHELASTIC_USE_AGENT_STORE", "False"}}), {5, 8, 1, 4, "h0", 300, "torchrun"}},
           {torchrun({{"OMPI_COMM_WORLD_RANK", "1"}, {"SLURM_PROCID", "1"}}), {5, 8, 1, 4, "h0", 300, "torchrun"}},
           {{{"RANK", "1"}, {"WORLD_SIZE", "2"}}, {1, 2, 1, 2, "127.0.0.1", 29500, "torchrun"}},
           {{{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_PORT", "7"}}, {0, 1, 0, 1, "127.0.0.1", 7, "torchrun"}},
           {open_mpi, {2, 4, 2, 4, "127.0.0.1", 29500, "Open MPI"}},
           {mpich, {3, 4, 1, 2, "fe80::1", 29500, "MPICH"}},
           {slurm("6(x2)", "1"), {6, 12, 0, 6, "h0", 29500, "Slurm"}},
           {slurm("6,2(x3)", "1"), {6, 12, 0, 2, "h0", 29500, "Slurm"}},
           {slurm("2(x3),6", "3"), {6, 12, 0, 6, "h0", 29500, "Slurm"}},
           {slurm("12", "0", {{"MASTER_ADDR", ""}, {"PMI_RANK", "0"}}), {6, 12, 0, 12, "127.0.0.1", 29500, "Slurm"}},
       }) {
    Environment e = read(c.set);
    INFO(c.e.launcher << " " << c.e.port);
    CHECK(e.rank == c.e.rank);
    CHECK(e.world == c.e.world);
    CHECK(e.local_rank == c.e.local_rank);
    CHECK(e.local_world == c.e.local_world);
    CHECK(e.address == c.e.address);
    CHECK(e.port == c.e.port);
    CHECK(e.launcher == c.e.launcher);
  }
}

TEST_CASE("law 9: an environment that makes no sense is an error that names the variable") {
  struct Case {
    Variables set;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{
           {{},
            "[environment] no launcher has started this process: run `torchrun --no-python --nproc-per-node=N "
            "PROGRAM`, `mpirun -n N PROGRAM` or `srun -n N PROGRAM`, or set RANK and WORLD_SIZE"},
           {{{"MASTER_ADDR", "h0"}}, "set RANK and WORLD_SIZE"},
           {{{"RANK", "0"}}, "[environment] WORLD_SIZE is not set, though other variables of its launcher are"},
           {torchrun({{"LOCAL_RANK", ""}}), "[environment] LOCAL_RANK is not set"},
           {torchrun({{"RANK", "8"}}), "[environment] RANK=\"8\" is not a number from 0 to 7"},
           {torchrun({{"RANK", "-1"}}), "[environment] RANK=\"-1\" is not a number from 0 to 7"},
           {torchrun({{"RANK", "1x"}}), "[environment] RANK=\"1x\" is not a number"},
           {torchrun({{"WORLD_SIZE", "0"}}), "[environment] WORLD_SIZE=\"0\" is not a number from 1 to"},
           {torchrun({{"WORLD_SIZE", "99999999999"}}), "WORLD_SIZE=\"99999999999\" is not a number"},
           {torchrun({{"LOCAL_RANK", "4"}}), "LOCAL_RANK=\"4\" is not a number from 0 to 3"},
           {torchrun({{"LOCAL_WORLD_SIZE", "9"}}), "LOCAL_WORLD_SIZE=\"9\" is not a number from 1 to 8"},
           {torchrun({{"MASTER_PORT", "70000"}}), "MASTER_PORT=\"70000\" is not a number from 1 to 65534"},
           {torchrun({{"MASTER_ADDR", ""}}),
            "[environment] 4 of 8 ranks are on this host: set MASTER_ADDR to the host of rank 0, for all ranks"},
           {slurm("6(x2)", "2"), "[environment] SLURM_STEP_TASKS_PER_NODE=\"6(x2)\" has no host 2 (SLURM_NODEID)"},
           {slurm("", "0"), "SLURM_STEP_TASKS_PER_NODE=\"\" has no host 0"},
           {slurm("x", "0"), "SLURM_STEP_TASKS_PER_NODE=\"x\" has no host 0"},
           {slurm("6(x2)", ""), "[environment] SLURM_NODEID is not set"},
       })
    CHECK_THROWS_WITH(read(c.set), Contains(c.error));
}
