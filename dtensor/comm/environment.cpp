#include "dtensor/comm/environment.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "placement/error.h"

namespace dtensor {
namespace {

struct Launcher {
  const char *name, *sign, *rank, *world, *local_rank, *local_world;  // `sign` is set by this launcher alone
};

// MPI before Slurm: under mpirun in a Slurm job the variables of Slurm are those of another process. And PMI_RANK is no
// sign of MPICH, because srun sets it too.
constexpr Launcher launchers[] = {
    {"torchrun", "RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"MPICH", "MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"Slurm", "SLURM_PROCID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"},
};

class Reader {
 public:
  Reader(const std::function<const char*(const char*)>& variable) : variable_(variable) {}

  std::string text(const char* name) const {
    const char* value = variable_(name);
    return value ? value : "";
  }
  bool has(const char* name) const { return !text(name).empty(); }

  int number(const char* name, int least, int most) const {
    std::string value = text(name);
    check(!value.empty(), "[environment] {} is not set, though other variables of its launcher are", name);
    int n = 0;
    auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
    check(error == std::errc() && end == value.data() + value.size() && n >= least && n <= most,
          "[environment] {}=\"{}\" is not a number from {} to {}", name, value, least, most);
    return n;
  }

 private:
  const std::function<const char*(const char*)>& variable_;
};

constexpr int many = 1 << 24;  // ranks

// The tasks of host `node` in Slurm's notation: "4(x2),3" is 4, 4 and 3.
int slurm_tasks(const std::string& text, int node) {
  int first = 0;  // host of the next group
  for (const char* at = text.c_str(); std::isdigit(uint8_t(*at));) {
    char* end = nullptr;
    long tasks = std::strtol(at, &end, 10), times = 1;
    if (std::strncmp(end, "(x", 2) == 0) times = std::strtol(end + 2, &end, 10), end += *end == ')';
    if (node < first + times) return int(tasks);
    first += int(times);
    at = *end == ',' ? end + 1 : end;
  }
  fail("[environment] SLURM_STEP_TASKS_PER_NODE=\"{}\" has no host {} (SLURM_NODEID)", text, node);
}

void read_local(const Reader& read, const Launcher& l, Environment& e) {
  if (e.launcher == "torchrun" && !read.has(l.local_rank) && !read.has("MASTER_ADDR")) {
    e.local_rank = e.rank, e.local_world = e.world;  // set by hand
    return;
  }
  e.local_world = e.launcher == "Slurm" ? slurm_tasks(read.text(l.local_world), read.number("SLURM_NODEID", 0, many))
                                        : read.number(l.local_world, 1, e.world);
  e.local_rank = read.number(l.local_rank, 0, e.local_world - 1);
}

}  // namespace

bool was_launched() {
  return std::any_of(std::begin(launchers), std::end(launchers), [](const Launcher& l) { return std::getenv(l.sign); });
}

Environment read_environment() {
  return read_environment([](const char* name) { return std::getenv(name); });
}

Environment read_environment(const std::function<const char*(const char*)>& variable) {
  Reader read(variable);
  const Launcher* l = std::begin(launchers);
  while (l != std::end(launchers) && !read.has(l->sign)) ++l;
  check(l != std::end(launchers),
        "[environment] no launcher has started this process: run `torchrun --no-python --nproc-per-node=N PROGRAM`, "
        "`mpirun -n N PROGRAM` or `srun -n N PROGRAM`, or set RANK and WORLD_SIZE");
  Environment e;
  e.launcher = l->name;
  e.world = read.number(l->world, 1, many);
  e.rank = read.number(l->rank, 0, e.world - 1);
  read_local(read, *l, e);
  check(e.one_host() || read.has("MASTER_ADDR"),
        "[environment] {} of {} ranks are on this host: set MASTER_ADDR to the host of rank 0, for all ranks",
        e.local_world, e.world);
  if (read.has("MASTER_ADDR")) e.address = read.text("MASTER_ADDR");
  if (read.has("MASTER_PORT")) e.port = read.number("MASTER_PORT", 1, 65534);
  if (read.text("TORCHELASTIC_USE_AGENT_STORE") == "True") ++e.port;
  return e;
}

}  // namespace dtensor
