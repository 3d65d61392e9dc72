// The communicator of dry runs: collectives end at once and nothing moves. What would have run is written down by the
// observers, which see the same events as in a real run (law 8).
#include <algorithm>

#include "dtensor/comm/communicator.h"

namespace dtensor {
namespace {

class Recorded : public Communicator {
 public:
  explicit Recorded(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  Work all_reduce(std::vector<Buffers> list, Reduce) override { return started("all_reduce", list); }
  Work reduce_scatter(std::vector<Buffers> list, Reduce) override { return started("reduce_scatter", list); }
  Work all_gather(std::vector<Buffers> list) override { return started("all_gather", list); }
  Work all_to_all(std::vector<Buffers> list) override { return started("all_to_all", list); }
  void barrier() override {}
  std::shared_ptr<Communicator> split(const std::vector<int>& ranks) override {
    return std::make_shared<Recorded>(int(ranks.size()));
  }
  void abort(const std::string& reason) override { fail("{}", reason); }

 private:
  Work started(const char* what, const std::vector<Buffers>& list) const {
    for (const Buffers& b : list)
      check(b.out.device() == Device::meta || size_ == 1,
            "[{}] the recorded communicator moves no data, but a tensor of {} elements has bytes: run on meta tensors",
            what, b.out.numel());
    return Work();
  }

  int size_;
};

}  // namespace

std::shared_ptr<Communicator> make_recorded_communicator(int size) { return std::make_shared<Recorded>(size); }

}  // namespace dtensor
