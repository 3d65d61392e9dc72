#include "dtensor/comm/communicator.h"

#include "placement/error.h"

namespace dtensor {
namespace {

// Of a rank that is alone.
class LocalGraph : public CapturedGraph {
 public:
  explicit LocalGraph(cuda::Graph graph) : graph_(std::move(graph)) {}
  void launch(cuda::StreamHandle stream) override { graph_.launch(stream); }
  size_t nodes() const override { return graph_.nodes(); }

 private:
  cuda::Graph graph_;
};

}  // namespace

std::unique_ptr<CapturedGraph> Communicator::capture(cuda::StreamHandle stream, const std::function<void()>& f) {
  check(can_be_captured(), "[capture] collectives of {} ranks of this kind need the host: only NCCL's can be captured",
        size());
  return std::make_unique<LocalGraph>(cuda::Graph::capture(stream, f));
}

}  // namespace dtensor
