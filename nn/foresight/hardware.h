// What a machine can do, from a JSON file: docs/foresight.md has the format, examples/hardware/ some machines.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "placement/dtype.h"
#include "placement/mesh_shape.h"

namespace dtensor::nn {

// A call takes `seconds` + work / `per_second`, work being operations of products, scores of attention, bytes of all
// else.
struct Rate {
  double seconds = 0, per_second = 0;
  double of(double work) const { return seconds + work / per_second; }
};

// The ranks of a collective, as the links see them.
struct Peers {
  int ranks = 1, nodes = 1;
};

struct Hardware {
  std::string name;
  int64_t memory_bytes = 0;                  // of a device
  std::map<DType, double> flops;             // a second, as its maker says: what MFU is a share of
  std::map<int64_t, double> product_shares;  // of `flops` that a product reaches, by the least of its three sizes
  double attention_share = 1, attention_backward_share = 1;
  double bytes_per_second = 0;                   // that kernels reach, read and written
  double call_seconds = 0;                       // of each kernel, besides its work
  double host_seconds = 0;                       // in which the host gives a kernel to the device
  bool host_waits = false;                       // for the device, before each micro-batch
  bool overlaps = true;                          // collectives run beside kernels
  int cores = 0;                                 // that all ranks share; 0: each rank has a device of its own
  std::map<int, double> slowdowns;               // measured, in place of cores: by ranks, how much longer all takes
  std::map<int, double> waits;                   // measured, seconds of each launch of a collective, by ranks
  std::map<std::string, Rate, std::less<>> ops;  // measured, in place of the above

  // A collective takes `seconds` for each step of its ring, and bytes received / `per_second`: inside a node, or
  // between nodes, where each device has a link of its own to the outside.
  int node_devices = 1;
  Rate inside, between;
  // Of each device: copies to or from the host's memory, and bytes that the host's kernels reach there. 0: it is the
  // device's own memory, as on the CPU.
  Rate host_link;
  double host_bytes_per_second = 0;

  // The file, or the name of one in examples/hardware, with or without ".json". Errors: no such file or name; those of
  // from_json.
  static Hardware load(const std::string& file_or_name);
  // Errors: an unknown field, a missing one, a number that is not above 0.
  static Hardware from_json(const nlohmann::ordered_json& json);
  nlohmann::ordered_json to_json() const;

  // In seconds, on an idle machine. `least`: of the three sizes of a product. `scores`: of attention, those that its
  // mask leaves; what is measured of it in `ops` is the softmax alone, beside its products.
  double product(std::string_view op, DType dtype, double operations, int64_t least) const;
  double attention(std::string_view op, DType dtype, double operations, double scores, bool backward) const;
  double memory_bound(std::string_view op, double bytes) const;
  double collective(int64_t bytes, const Peers& peers) const;
  double copy(double bytes) const;  // between host memory and the device
  double on_host(std::string_view op, double bytes) const;
  // Of type `dtype`. Errors: none is given.
  double peak(DType dtype) const;
  // How much longer all takes where so many ranks share the cores and wait for one another.
  double slowdown(int ranks) const;
  // What a launch of a collective takes there besides, until the slowest rank has come.
  double wait(int ranks) const;
  // The ranks that differ on `axes` from rank 0, ranks in their order being on the nodes.
  Peers peers(const MeshShape& mesh, AxisSet axes) const;
};

}  // namespace dtensor::nn
