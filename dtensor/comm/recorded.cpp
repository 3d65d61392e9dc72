// The communicator of dry runs: collectives end at once and nothing moves. What would have run is written down by the
// observers, which see the same events as in a real run (law 8).
#include "dtensor/comm/recorded.h"

#include <algorithm>

namespace dtensor {
namespace {

class Recorded : public Communicator {
 public:
  explicit Recorded(int size, int rank = 0) : size_(size), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Work all_reduce(std::vector<Buffers> list, Reduce) override { return started("all_reduce", list); }
  Work reduce_scatter(std::vector<Buffers> list, Reduce) override { return started("reduce_scatter", list); }
  Work all_gather(std::vector<Buffers> list) override { return started("all_gather", list); }
  Work all_to_all(std::vector<Buffers> list) override { return started("all_to_all", list); }
  Work shift(std::vector<Buffers> list, int) override { return started("shift", list); }
  Work send(std::vector<Tensor> list, int) override { return started("send", buffers(list)); }
  Work receive(std::vector<Tensor> list, int) override { return started("receive", buffers(list)); }
  void barrier() override {}
  std::shared_ptr<Communicator> split(const RankGrid& ranks) override {
    return std::make_shared<Recorded>(ranks.size(), ranks.find(rank_));
  }
  void end() override {}
  void abort(const std::string& reason) override { fail("{}", reason); }

 private:
  Work started(const char* what, const std::vector<Buffers>& list) const {
    for (const Buffers& b : list) {
      if (b.out.device() == Device::meta) continue;
      check(size_ == 1,
            "[{}] the recorded communicator moves no data, but a tensor of {} elements has bytes: run on meta tensors",
            what, b.out.numel());
      copy(b.in, b.out.view(b.in.shape()));
    }
    return Work();
  }

  static std::vector<Buffers> buffers(const std::vector<Tensor>& list) {
    std::vector<Buffers> all;
    for (const Tensor& t : list) all.push_back({t, t});
    return all;
  }

  int size_, rank_;
};

}  // namespace

std::shared_ptr<Communicator> make_recorded_communicator(int size) { return std::make_shared<Recorded>(size); }

std::shared_ptr<Communicator> make_recorded_communicator(int size, int rank) {
  check(rank >= 0 && rank < size, "[make_recorded_communicator] a world of {} ranks has no rank {}", size, rank);
  return std::make_shared<Recorded>(size, rank);
}

}  // namespace dtensor
