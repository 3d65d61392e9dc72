// What losses and their gradients communicate.
#include "ops/layer/loss.h"

#include <cmath>

#include "dtensor/comm_log.h"
#include "tests/autograd.h"
#include "tests/nn/helpers.h"

using namespace dtensor;

namespace {

Tensor numbers_of(const Shape& shape) {
  std::vector<float> v(size_t(numel(shape)));
  for (size_t i = 0; i < v.size(); ++i) v[i] = float((i * 7) % 11) / 4;
  return Tensor::of<float>(shape, v);
}

struct Seen {
  int launches = 0;
  std::string log;
};
Seen seen(const CommLog& log) {
  Seen s;
  for (const CommLog::Entry& e : log.entries()) {
    s.launches = std::max(s.launches, e.group + 1);
    s.log += to_string(e) + "\n";
    check(e.collective == "all_reduce" && e.asked_for, "{}", s.log);
  }
  return s;
}

}  // namespace

TEST_CASE("cross entropy: at most three launches of small all-reduces forward and none backward, on any sharding") {
  struct Case {
    const char* what;
    std::vector<Placement> logits, target;
    int64_t class_dim;
    int launches;
  };
  const Case cases[] = {
      {"classes on one axis", {Replicate(), Shard(2)}, {Replicate(), Replicate()}, -1, 2},
      {"classes on two axes", {Shard(2), Shard(2)}, {Replicate(), Replicate()}, -1, 2},
      {"rows and classes", {Shard(0), Shard(2)}, {Shard(0), Replicate()}, -1, 3},
      {"rows on two axes", {Shard(0), Shard(1)}, {Shard(0), Shard(1)}, -1, 1},
      {"the middle dimension are classes", {Shard(0), Shard(1)}, {Shard(0), Replicate()}, 1, 3},
      {"whole", {Replicate(), Replicate()}, {Replicate(), Replicate()}, -1, 0},
  };
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2,b=2");
    rank.strict = true;
    for (const Case& c : cases)
      for (double smoothing : {0.0, 0.1}) {
        Layout of_logits{c.logits[0], c.logits[1]}, of_target{c.target[0], c.target[1]};
        auto logits = DistributedTensor::distribute(numbers_of({4, 6, 8}), mesh, of_logits);
        Shape rows{4, c.class_dim == 1 ? 8 : 6};
        std::vector<int64_t> ids(size_t(numel(rows)));
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i % 6);
        auto target = DistributedTensor::distribute(Tensor::of<int64_t>(rows, ids), mesh, of_target);
        testing::Autograd autograd(rank);
        autograd.watch(logits);
        CommLog log(rank);
        DistributedTensor loss =
            ops::cross_entropy(logits, target, {.label_smoothing = smoothing, .class_dim = c.class_dim});
        Seen forward = seen(log);
        check(forward.launches == c.launches, "{}: {} launches\n{}", c.what, forward.launches, forward.log);
        log.clear();
        autograd.backward(loss);
        check(log.entries().empty(), "{}: backward\n{}", c.what, seen(log).log);
        check(autograd.gradient(logits).layout() == logits.layout(), "{}: {}", c.what,
              to_string(autograd.gradient(logits)));
      }
  });
}

TEST_CASE("losses of Partial inputs reduce them once, and nothing in the gradient") {
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2");
    rank.strict = true;
    auto x = DistributedTensor::distribute(numbers_of({4, 6}), mesh, {Partial()});
    auto target = DistributedTensor::distribute(Tensor::of<int64_t>({4}, {0, 1, 5, 2}), mesh, Layout());
    auto y = DistributedTensor::distribute(numbers_of({4, 6}), mesh, Layout());
    for (bool entropy : {true, false}) {
      testing::Autograd autograd(rank);
      autograd.watch(x);
      CommLog log(rank);
      DistributedTensor loss = entropy ? ops::cross_entropy(x, target) : ops::mse_loss(x, y);
      check(log.entries().size() == 1, "{}", seen(log).log);
      autograd.backward(loss);
      check(log.entries().size() == 1, "{}", seen(log).log);
    }
  });
}

TEST_CASE("mse_loss of sharded inputs is one all-reduce of its sum, and nothing in the gradient") {
  launch(2, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2");
    rank.strict = true;
    auto x = DistributedTensor::distribute(numbers_of({5, 6}), mesh, {Shard(0)});
    auto y = DistributedTensor::distribute(Tensor::of<float>({5, 6}, std::vector<float>(30, 1)), mesh, {Shard(0)});
    testing::Autograd autograd(rank);
    autograd.watch(x);
    CommLog log(rank);
    DistributedTensor loss = ops::mse_loss(x, y);
    autograd.backward(loss);
    check(log.entries().size() == 1 && log.entries()[0].reason == "mse_loss", "{}", seen(log).log);
    check(autograd.gradient(x).layout() == x.layout(), "{}", to_string(autograd.gradient(x)));
  });
}

TEST_CASE(
    "linear_cross_entropy is cross_entropy of linear in chunks with its gradients, and a chunk adds the sums of its "
    "classes") {
  struct Case {
    const char* what;
    std::vector<Placement> hidden, weight;
    Shape rows;
    int64_t chunk_rows;
    int launches;  // of chunks and one of the totals
  };
  const Case cases[] = {
      {"whole", {Replicate(), Replicate()}, {Replicate(), Replicate()}, {4, 6}, 5, 0},
      {"classes on one axis, three chunks", {Replicate(), Replicate()}, {Replicate(), Shard(0)}, {4, 6}, 8, 6},
      {"rows and classes, two chunks", {Shard(0), Replicate()}, {Replicate(), Shard(0)}, {4, 6}, 6, 5},
      {"rows on both axes, chunks within", {Shard(0), Shard(0)}, {Replicate(), Replicate()}, {8}, 1, 1},
      {"rows on both axes, unevenly", {Shard(0), Shard(0)}, {Replicate(), Replicate()}, {7}, 1, 1},
  };
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "a=2,b=2");
    rank.strict = true;
    for (const Case& c : cases)
      for (auto reduction : {ops::Reduction::mean, ops::Reduction::sum}) {
        Shape shape = c.rows;
        shape.push_back(3);
        auto hidden = DistributedTensor::distribute(numbers_of(shape), mesh, Layout(std::span(c.hidden)));
        auto weight = DistributedTensor::distribute(numbers_of({8, 3}), mesh, Layout(std::span(c.weight)));
        std::vector<int64_t> ids(size_t(numel(c.rows)));
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i % 8);
        auto target =
            DistributedTensor::distribute(Tensor::of<int64_t>(c.rows, ids), mesh, Layout(std::span(c.hidden)));
        std::vector<Tensor> results[2];
        for (bool chunked : {false, true}) {
          testing::Autograd autograd(rank);
          autograd.watch(hidden), autograd.watch(weight);
          CommLog log(rank);
          DistributedTensor loss =
              chunked
                  ? ops::linear_cross_entropy(
                        hidden, weight, target,
                        {.ignore_index = 3, .reduction = reduction, .label_smoothing = 0.1, .chunk_rows = c.chunk_rows})
                  : ops::cross_entropy(ops::linear(hidden, weight), target,
                                       {.ignore_index = 3, .reduction = reduction, .label_smoothing = 0.1});
          if (chunked)
            check(seen(log).launches == c.launches, "{}: {} launches\n{}", c.what, seen(log).launches, seen(log).log);
          autograd.backward(ops::mul(loss, 2));
          results[chunked] = {loss.full_tensor(), autograd.gradient(hidden).full_tensor(),
                              autograd.gradient(weight).full_tensor()};
        }
        for (size_t i = 0; i < 3; ++i)
          for (int64_t k = 0; k < results[0][i].numel(); ++k) {
            double whole = element(results[0][i], k), parts = element(results[1][i], k);
            check(std::abs(whole - parts) < 1e-5 * (1 + std::abs(whole)), "{}: {}[{}] is {}, not {}", c.what, i, k,
                  parts, whole);
          }
      }
    NoGrad scope(rank);  // nothing but the loss is computed
    auto x = DistributedTensor::distribute(numbers_of({4, 3}), mesh, Layout()), w = x;
    auto t = DistributedTensor::distribute(Tensor::of<int64_t>({4}, {0, 1, 2, 3}), mesh, Layout());
    check(std::isfinite(ops::linear_cross_entropy(x, w, t).item()), "no loss");
  });
}
