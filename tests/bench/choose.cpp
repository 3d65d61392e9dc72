// Host time of first decisions on a mesh of six axes, and of redistributions on 1,024 recorded ranks.
//
//     build/bench/choose
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <random>

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "ops/all.h"
#include "ops/cards.h"
#include "placement/propagate.h"

using namespace dtensor;

namespace {

template <class F>
void time(const char* what, int times, F f) {
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) f();
  double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / times;
  std::printf("%-48s %10.1f us\n", what, us);
}

// Processor time of choices, in microseconds.
class Times {
 public:
  void add(const Propagation& p, const std::string& name) {
    auto now = [] {
      timespec t;
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
      return double(t.tv_sec) * 1e6 + double(t.tv_nsec) * 1e-3;
    };
    double begin = now();
    choose(p);
    us_.push_back(now() - begin);
    if (us_.back() > worst_) worst_ = us_.back(), worst_name_ = name;
  }
  void print(const std::string& what) {
    std::sort(us_.begin(), us_.end());
    auto at = [&](double share) { return us_[size_t(share * double(us_.size() - 1))]; };
    std::printf("%-24s %6zu choices: median %8.1f, 90 %% %8.1f, 99 %% %8.1f, worst %8.1f us (%s)\n", what.c_str(),
                us_.size(), at(0.5), at(0.9), at(0.99), us_.back(), worst_name_.c_str());
  }

 private:
  std::vector<double> us_;
  double worst_ = 0;
  std::string worst_name_;
};

struct Random {
  std::mt19937 engine{1};
  int below(int n) { return int(engine() % unsigned(n)); }

  // Six axes of 2 to `most` ranks.
  MeshShape mesh(int most) {
    std::vector<int> sizes;
    for (int a = 0; a < max_axes; ++a) sizes.push_back(2 + below(most - 1));
    return MeshShape(sizes, {"pp", "dr", "ds", "cp", "tp", "ep"});
  }
  // Replicate, Partial and each dimension are equally likely on every axis.
  Layout layout(int dims, Reduce reduce = Reduce::sum) {
    Layout l;
    for (int a = 0; a < max_axes; ++a) {
      int d = below(dims + 2);
      if (d < dims)
        l.split[size_t(d)].insert(below(l.split[size_t(d)].count + 1), a);
      else if (d > dims)
        l.partial |= axis_bit(a), l.reduce = reduce;
    }
    return l;
  }
};

// Choices for a sample's operands, all in random layouts, on six axes of 2 to `most` ranks.
void choose_random(const Op& op, const Sample& sample, int most, int times, Random& random, Times& found) {
  std::vector<const Shape*> shapes;
  for (const SampleInput& in : sample.inputs)
    shapes.push_back(in.kind == SampleInput::Kind::absent ? nullptr : &in.shape);
  BoundRule rule = bind_rule(op, shapes, sample.attributes, DType::f32);
  for (int i = 0; i < times; ++i) {
    MeshShape mesh = random.mesh(most);
    std::vector<TensorSpec> specs;
    for (const SampleInput& in : sample.inputs) specs.push_back({DType::f32, in.shape, random.layout(in.shape.dims())});
    std::vector<const TensorSpec*> operands;
    std::string text = fmt::format("{} on {}", op.name, mesh);
    for (size_t k = 0; k < specs.size(); ++k) {
      operands.push_back(shapes[k] ? &specs[k] : nullptr);
      if (shapes[k]) text += ", " + to_string(specs[k], mesh);
    }
    found.add({rule, mesh, operands, {}, CostModel{}}, text);
  }
}

void choose_random(const Op& op, const Sample& sample) {
  Random random;
  Times times;
  choose_random(op, sample, 2, 50, random, times);
  times.print(std::string(op.name));
}

void choose_cards(int times) {
  for (int most : {2, 4}) {
    Random random;
    Times found;
    for (const Op* op : ops::cards())
      if (!op->composite)
        for (const Sample& sample : op->sample) choose_random(*op, sample, most, times, random, found);
    found.print(fmt::format("all cards, 2 to {} ranks", most));
  }
}

}  // namespace

int main() {
  auto many = Rank::recorded(64);
  DeviceMesh six(*many, "pp=2,dr=2,ds=2,cp=2,tp=2,ep=2");
  auto tensor = [&](const char* spec) { return DistributedTensor::empty(six, parse_spec(spec, six.shape())); };
  auto x = tensor("f32[64,512,256] dr=Shard(0) ds=Shard(0) cp=Shard(1)"), w = tensor("f32[512,256] tp=Shard(0)");
  auto q = tensor("f32[64,32,512,64] dr=Shard(0) ds=Shard(0) tp=Shard(1) cp=Shard(2)");
  auto sum = tensor("f32[64,512,256] dr=Shard(0) ds=Shard(0) cp=Shard(1) tp=Partial");
  time("linear, first on six axes", 1, [&] { ops::linear(x, w); });
  time("attention, first on six axes", 1, [&] { ops::scaled_dot_product_attention(q, q, q, {.causal = true}); });
  time("relu of a Partial, first on six axes", 1, [&] { ops::relu(sum); });
  time("mul of two Partial, first on six axes", 1, [&] { ops::mul(sum, sum); });
  auto two = tensor("f32[64,512,256] dr=Shard(0) tp=Partial ep=Partial");
  auto three = tensor("f32[64,512,256] dr=Shard(0) cp=Partial tp=Partial ep=Partial");
  time("relu of a Partial on two of six axes, first", 1, [&] { ops::relu(two); });
  time("relu of a Partial on three of six axes, first", 1, [&] { ops::relu(three); });
  choose_random(ops::relu_op, {{{64, 512, 256}}});
  choose_random(ops::mul_op, {{{64, 512, 256}, {64, 512, 256}}});
  choose_random(ops::matmul_op, {{{64, 512, 256}, {256, 512}}});
  choose_random(ops::linear_op, {{{64, 512, 256}, {512, 256}, {512}}});
  choose_random(ops::embedding_op, {{{64, 512}, {32000, 256}}});
  choose_cards(1);

  auto rank = Rank::recorded(1024);
  DeviceMesh mesh(*rank, "dp=1024");
  auto y = DistributedTensor::empty(mesh, {DType::f32, {8192, 8192}, Layout{Shard(0)}});
  time("Shard(0) to Shard(1) at 1,024 ranks, first", 1, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Shard(1) at 1,024 ranks, cached", 10000, [&] { y.redistribute({Shard(1)}); });
  time("Shard(0) to Replicate at 1,024 ranks, first", 1, [&] { y.redistribute({Replicate()}); });
  time("Shard(0) to Replicate at 1,024 ranks, cached", 10000, [&] { y.redistribute({Replicate()}); });
}
