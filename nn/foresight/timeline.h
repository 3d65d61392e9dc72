// One step of one rank as it goes by: calls with their work, collectives, and how long each takes on a machine.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "nn/foresight/hardware.h"
#include "nn/train/optimizer.h"
#include "ops/core/call.h"

namespace dtensor::nn {

// A call or a collective that ran.
struct Activity {
  enum class Kind : uint8_t { product, attention, memory_bound, collective, wait };
  Kind kind;
  Phase phase;
  std::string_view name;  // of the op or the collective
  int module;             // in Timeline::modules
  DType dtype = DType::f32;
  double operations = 0;         // of a product or attention, of this rank
  double global_operations = 0;  // of all ranks, as if nothing were done twice
  double scores = 0;             // of attention, that its mask leaves
  int64_t bytes = 0;             // read and written; of a collective, received
  int64_t least = 0;             // of the three sizes of a product
  AxisSet axes = 0;              // of a collective; none: a copy between host memory and the device
  uint64_t group = 0;            // its launch; a wait is for one
  bool on_host = false;          // of values in host memory, where the CPU works while the device waits
};

// What the optimizer's update reads and writes: parameters and states, gradients, copies in another type.
int64_t bytes_of_update(Optimizer& optimizer);
// What of it is of parameters in host memory.
int64_t bytes_of_host_update(Optimizer& optimizer);

// What a step consists of, in seconds. They add up to `step` but for what overlaps:
// step = compute + memory_bound + exposed_communication + host.
struct StepTime {
  double step = 0;
  double compute = 0;                // products and attention
  double memory_bound = 0;           // all other kernels
  double communication = 0;          // collectives, and copies from and to the host, hidden or not
  double exposed_communication = 0;  // that kernels wait for
  double host = 0;                   // in which the device waits for the host
};

// When an activity ran, in seconds from the step's beginning.
struct Span {
  size_t activity;
  double begin, end;
};

// Observes a rank while it exists.
class Timeline : public Observer {
 public:
  explicit Timeline(Rank& rank) : rank_(rank) { rank_.add(*this); }
  ~Timeline() override { rank_.remove(*this); }
  Timeline(const Timeline&) = delete;

  void clear();
  // The update, which is no call: bytes that it reads and writes, of which some in host memory.
  void add_update(int64_t bytes, int64_t on_host);
  const std::vector<Activity>& activities() const { return activities_; }
  const std::vector<std::string>& modules() const { return modules_; }
  // Of products and attention, by this rank.
  double operations() const;
  // What the model asks for: three times the forward pass of all ranks, without what is computed twice.
  double model_operations() const;

  // Plays the step on the machine. `captured`: as one graph, for which the host does nothing. Spans are added where
  // they are asked for.
  StepTime time(const Hardware& hardware, const MeshShape& mesh, bool captured = false,
                std::vector<Span>* spans = nullptr) const;

  void on_call(const CallEvent& e) override;
  void on_collective(const CollectiveEvent& e) override;
  void on_redistribute(const RedistributeEvent& e) override;
  void on_host_copy(const DistributedTensor& from) override;

 private:
  int module_now();

  Rank& rank_;
  std::vector<Activity> activities_;
  std::vector<std::string> modules_{""};
  std::map<std::string, int, std::less<>> module_index_{{"", 0}};
  std::map<std::string, std::deque<uint64_t>> under_way_;  // launches of a step of one tensor, the first one first
  std::map<uint64_t, std::deque<uint64_t>> to_device_;     // copies under way of a value, by its id, likewise
  uint64_t copies_ = 0;
};

}  // namespace dtensor::nn
