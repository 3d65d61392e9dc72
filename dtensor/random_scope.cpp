#include "dtensor/random_scope.h"

namespace dtensor {

StepNumber::StepNumber(const DeviceMesh& mesh, int64_t step)
    : step_(step), tensor_(DistributedTensor::distribute(Tensor::of<int64_t>({}, {step}), mesh, Layout())) {}

void StepNumber::set(int64_t step) {
  Rank& rank = tensor_.mesh().rank_state();
  if (rank.device() == Device::cuda)
    check(!cuda::Graph::is_capturing(rank.allocator()->stream()),
          "[StepNumber] step {} is set while a graph is captured, which would set it again with each launch: set it "
          "before",
          step);
  step_ = step;
  if (!tensor_.is_meta()) copy(Tensor::of<int64_t>({}, {step}), tensor_.local_for_writing());
}

RandomScope::RandomScope(const StepNumber& step, RandomScopeOptions options)
    : step_(step), options_(std::move(options)), outer_(step.tensor().mesh().rank_state().random_scope) {
  for (const DistributedTensor* x : {&options_.rows, &options_.positions})
    if (x->defined())
      check(x->dtype() == DType::i64 && x->dims() == 1, "[RandomScope] {} are {}: they are i64 of one dimension",
            x == &options_.rows ? "rows" : "positions", *x);
  step.tensor().mesh().rank_state().random_scope = this;
}

RandomScope::~RandomScope() { step_.tensor().mesh().rank_state().random_scope = outer_; }

uint64_t RandomScope::next_key(std::string_view purpose) {
  std::string_view path = step_.tensor().mesh().rank_state().label(Label::Kind::module);
  int64_t call = calls_[fmt::format("{} {}", purpose, path)]++;
  return RandomStream{.seed = options_.seed, .purpose = purpose, .path = path, .call = call}.key_at_step_0();
}

DistributedTensor micro_batch_rows(const DeviceMesh& mesh, const Layout& batch, int64_t rows, int parts, int part) {
  Layout layout;
  layout.split[0] = batch.split[0];
  int ranks = 1;
  for (int axis : layout.split[0]) ranks *= mesh.shape().size(axis);
  check(parts > 0 && part >= 0 && part < parts && rows % (int64_t(ranks) * parts) == 0,
        "[micro_batch_rows] {} rows on {} ranks do not make part {} of {} equal micro-batches", rows, ranks, part,
        parts);
  int64_t mine = rows / ranks, n = mine / parts;
  std::vector<int64_t> list;
  for (int64_t r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < n; ++i) list.push_back(r * mine + part * n + i);
  return DistributedTensor::distribute(Tensor::of<int64_t>({n * ranks}, list), mesh, layout);
}

}  // namespace dtensor
