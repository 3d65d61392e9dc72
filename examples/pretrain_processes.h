// llama_pretrain as several processes, which a launcher has started.
#pragma once

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dtensor/agree.h"
#include "dtensor/comm/environment.h"
#include "dtensor/mpi/launch_mpi.h"
#include "dtensor/redistribute.h"

namespace dtensor {

inline void check_world(const Environment& e, const MeshShape& mesh) {
  check(e.world == mesh.world(), "[llama_pretrain] --mesh {} has {} ranks, but {} started {}", mesh, mesh.world(),
        e.launcher, e.world);
}

// Who this process is among those that are ranks on CPUs; none where ranks are threads.
inline std::optional<Environment> processes_of_mpi(bool mpi, const MeshShape& mesh) {
  if (mpi) {
    std::string why(mpi_unavailable());
    check(why.empty(), "[llama_pretrain] --launch mpi: {}", why);
    check(was_launched(),
          "[llama_pretrain] --launch mpi needs processes: start this with `mpirun -n {} llama_pretrain ...` or srun",
          mesh.world());
  }
  if (!was_launched()) return {};
  Environment e = read_environment([](const char* name) {
    const char* value = std::getenv(name);
    return !value && std::string_view(name) == "MASTER_ADDR" ? "found by MPI" : value;
  });
  check(mpi || e.world == 1,
        "[llama_pretrain] {} started {} processes, but with --launch threads each would be a run of its own: give "
        "--launch mpi, or start one process",
        e.launcher, e.world);
  if (!mpi) return {};
  check_world(e, mesh);
  return e;
}

using CommonOptions = std::vector<std::pair<std::string, nlohmann::ordered_json>>;

// All ranks call it. Errors: a value that is not rank 0's, with its name.
inline void check_same_options(const DeviceMesh& mesh, const CommonOptions& values) {
  Rank& rank = mesh.rank_state();
  auto number = [](const nlohmann::ordered_json& value) { return int64_t(std::hash<std::string>()(value.dump())); };
  Tensor local = Tensor::zeros(rank.host_allocator(), DType::i64, {int64_t(values.size())});
  if (mesh.rank() == 0)
    for (size_t i = 0; i < values.size(); ++i) local.data<int64_t>()[i] = number(values[i].second);
  Layout partial;
  partial.partial = mesh.shape().all();
  Tensor of_first = DistributedTensor::from_local(local.to(rank.allocator()), mesh, partial, local.shape())
                        .redistribute(Layout(), {.reason = "the same options"})
                        .local()
                        .cpu();
  agree_on_error(mesh, [&] {
    for (size_t i = 0; i < values.size(); ++i)
      check(of_first.data<int64_t>()[i] == number(values[i].second),
            "[llama_pretrain] this process was given another {} than that of rank 0, and has {:.200}: start all with "
            "the same options",
            values[i].first, values[i].second.dump());
  });
}

}  // namespace dtensor
