#include "nn/foresight/calibrate.h"

#include <fmt/format.h>
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "dtensor/redistribute.h"
#include "nn/foresight/timeline.h"
#include "nn/models/auto_plan.h"
#include "nn/train/causal_lm.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = Activity::Kind;
using Samples = std::vector<std::pair<double, double>>;  // work, seconds

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

double median(std::vector<double> v) {
  std::ranges::nth_element(v, v.begin() + int64_t(v.size() / 2));
  return v[v.size() / 2];
}

// When each activity of a timeline was over. It observes after the timeline.
class Stopwatch : public Observer {
 public:
  Stopwatch(Rank& rank, const Timeline& timeline) : rank_(rank), timeline_(timeline) { rank_.add(*this); }
  ~Stopwatch() override { rank_.remove(*this); }
  Stopwatch(const Stopwatch&) = delete;

  std::vector<Clock::time_point> ends;

  void on_call(const CallEvent&) override {
    if (timeline_.activities().size() == ends.size()) return;  // a view, or a composite, whose ops were timed
    rank_.synchronize();
    ends.resize(timeline_.activities().size(), Clock::now());
  }

 private:
  Rank& rank_;
  const Timeline& timeline_;
};

struct Size {
  int64_t hidden, batch, length;
  int split = 1;  // the model is what one of so many tensor-parallel ranks has: narrow products of many rows
};
constexpr Size sizes[] = {{32, 2, 32},   {64, 4, 64},   {128, 2, 128},    {128, 8, 128},
                          {256, 2, 128}, {512, 1, 128}, {128, 8, 128, 2}, {128, 8, 128, 4}};
constexpr int64_t vocabulary = 512;
constexpr int warm_up = 2;  // steps that are not measured

LlamaConfig model_of(const Size& s) {
  LlamaConfig c;
  c.vocab_size = vocabulary / s.split, c.hidden_size = s.hidden, c.intermediate_size = 3 * s.hidden / s.split;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 8 / s.split, c.num_key_value_heads = 4 / s.split, c.head_dim = s.hidden / 8;
  return c;
}

struct Timed {
  Activity activity;
  double seconds;
};

// Ids in no order, rows over all ranks.
Batch batch_of(const DeviceMesh& mesh, const Size& s) {
  std::vector<int64_t> ids(size_t(s.batch * s.length));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int64_t(i * 7 + i * i) % (vocabulary / s.split);
  Tensor rows = Tensor::of<int64_t>({s.batch, s.length}, ids);
  auto ids_of = [&] {
    DistributedTensor x = DistributedTensor::distribute(rows, mesh, batch_layout(mesh.shape()));
    return DistributedTensor::from_local(x.local().to(mesh.rank_state().allocator()), mesh, x.layout(), x.shape());
  };
  return {ids_of(), ids_of()};
}

// What the calls of a training step on one rank take: the mean over the steps in the middle, those that are neither the
// fastest nor the slowest, so that calls add up to a step. (Medians of calls do not: what delays one is rare and long.)
std::vector<Timed> time_step(const CalibrateOptions& o, const Size& size) {
  auto rank = Rank::single(o.device);
  DeviceMesh mesh(*rank, "dp=1");
  LlamaForCausalLM model(mesh, model_of(size));
  materialize(model, 1);
  AdamW optimizer(model.parameters(), {});
  Trainer trainer(model, causal_lm_loss(static_cast<CausalLM&>(model)), optimizer, {.graph = false});
  Batch batch = batch_of(mesh, size);
  std::vector<Activity> activities;
  std::vector<std::vector<double>> steps;  // seconds of each activity
  for (int step = 0; step < warm_up + o.steps; ++step) {
    Timeline timeline(*rank);
    Stopwatch watch(*rank, timeline);
    Clock::time_point last = Clock::now();
    trainer.step(batch);
    rank->synchronize();
    watch.ends.push_back(Clock::now());  // of the update, which is no call
    timeline.add_update(bytes_of_update(optimizer), 0);
    if (step < warm_up) continue;
    activities = timeline.activities();
    steps.emplace_back();
    for (Clock::time_point end : watch.ends) steps.back().push_back(seconds_between(std::exchange(last, end), end));
  }
  std::ranges::sort(steps, {}, [](const auto& s) { return std::accumulate(s.begin(), s.end(), 0.0); });
  size_t left_out = steps.size() / 4;  // at either end
  std::vector<Timed> list;
  for (size_t i = 0; i < activities.size(); ++i) {
    double sum = 0;
    for (size_t s = left_out; s < steps.size() - left_out; ++s) sum += steps[s][i];
    list.push_back({activities[i], sum / double(steps.size() - 2 * left_out)});
  }
  return list;
}

// On all cores at once, as ranks compute.
std::vector<Timed> time_steps(const CalibrateOptions& o) {
  int copies = o.device == Device::cpu ? o.cores : 1;
  std::vector<Timed> all;
  for (const Size& size : sizes) {
    if (o.note)
      o.note(fmt::format("a step of {} rows of {} tokens, width {}{}", size.batch, size.length, size.hidden,
                         size.split > 1 ? fmt::format(", on one of {} ranks", size.split) : ""));
    std::vector<std::vector<Timed>> of_copy(static_cast<size_t>(copies));
    launch(copies, [&](Rank& r) { of_copy[size_t(r.rank())] = time_step(o, size); },
           {.threads = 1, .device = o.device});
    for (size_t i = 0; i < of_copy[0].size(); ++i) {
      double seconds = 0;
      for (const auto& copy : of_copy) seconds += copy[i].seconds / copies;
      all.push_back({of_copy[0][i].activity, seconds});
    }
  }
  return all;
}

// Products reach a share of the fastest by the least of their sizes, to the nearest power of two.
void set_products(Hardware& h, const std::vector<Timed>& all) {
  std::map<int64_t, std::pair<double, double>> by_size;  // operations and seconds
  for (const Timed& t : all) {
    if (t.activity.kind != Kind::product) continue;
    auto& [operations, seconds] = by_size[int64_t(std::bit_ceil(uint64_t(t.activity.least)))];
    operations += t.activity.operations, seconds += std::max(t.seconds - h.call_seconds, 0.1 * t.seconds);
  }
  double fastest = 0;
  for (const auto& [size, sum] : by_size) fastest = std::max(fastest, sum.first / sum.second);
  h.flops[DType::f32] = fastest;
  for (const auto& [size, sum] : by_size) h.product_shares[size] = sum.first / sum.second / fastest;
}

void set_memory_bound(Hardware& h, const std::vector<Timed>& all) {
  std::map<std::string, Samples> by_op;
  Samples together;
  for (const Timed& t : all) {
    if (t.activity.kind != Kind::memory_bound) continue;
    by_op[std::string(t.activity.name)].emplace_back(t.activity.bytes, t.seconds);
    together.emplace_back(t.activity.bytes, t.seconds);
  }
  Rate other = fit(together);
  h.call_seconds = other.seconds, h.bytes_per_second = other.per_second;
  for (const auto& [op, samples] : by_op) h.ops[op] = fit(samples);
}

// What attention takes besides its products, which are as fast as the fastest: the softmax, by scores.
void set_attention(Hardware& h, const std::vector<Timed>& all) {
  std::map<std::string, Samples> by_op;
  for (const Timed& t : all) {
    if (t.activity.kind != Kind::attention) continue;
    double products = t.activity.operations / h.peak(t.activity.dtype);
    by_op[std::string(t.activity.name)].emplace_back(t.activity.scores,
                                                     std::max(t.seconds - products, 0.1 * t.seconds));
  }
  for (const auto& [op, samples] : by_op) h.ops[op] = fit(samples);
}

// Ranks that are threads: a reduction of each size over as many as there are cores, two at least.
Rate time_collectives(const CalibrateOptions& o) {
  int ranks = std::max(2, o.cores);
  if (o.note) o.note(fmt::format("reductions over {} ranks", ranks));
  Samples samples;
  launch(ranks,
         [&](Rank& rank) {
           DeviceMesh mesh(rank, MeshShape({ranks}, {"dp"}));
           for (int64_t n : {64, 1024, 16384, 65536, 262144, 1048576}) {
             DistributedTensor x = zeros(mesh, TensorSpec{DType::f32, {n}, Layout().with(0, Partial())});
             std::vector<double> times;
             for (int i = 0; i < 25; ++i) {
               Clock::time_point begin = Clock::now();
               DistributedTensor y = x.redistribute(Layout());
               rank.synchronize();
               if (i >= 5) times.push_back(seconds_between(begin, Clock::now()));
             }
             Plan plan = plan_of(x, Layout());
             if (rank.rank() == 0) samples.emplace_back(double(plan.bytes()), median(times));
           }
         },
         {.threads = 1, .device = o.device});
  Rate r = fit(samples);
  r.seconds /= std::log2(double(ranks));  // Hardware::collective's steps inside a node
  return r;
}

struct Crowd {
  double seconds = 0, ideal = 0;  // of a step; and what its calls and collectives would take on an idle machine
  double launches = 0;            // of collectives
};

// A step of so many ranks over an axis "dp" or "tp", of fully sharded parameters if asked.
Crowd time_crowd(const CalibrateOptions& o, const Hardware& h, int ranks, const Size& size, const char* axis,
                 bool fully_sharded) {
  if (o.note) o.note(fmt::format("a step of {} ranks over {}{}", ranks, axis, fully_sharded ? ", fully sharded" : ""));
  Crowd crowd;
  launch(ranks,
         [&](Rank& rank) {
           DeviceMesh mesh(rank, MeshShape({ranks}, {axis}));
           LlamaForCausalLM model(mesh, model_of(size));
           if (fully_sharded)
             ParallelPlan::from_json({{"fully_shard", {{"axis", axis}, {"modules", {"model.layers.*", ""}}}}})
                 .apply(model);
           else
             auto_plan(model_of(size), mesh.shape()).apply(model);
           materialize(model, 1);
           AdamW optimizer(model.parameters(), {});
           Trainer trainer(model, causal_lm_loss(static_cast<CausalLM&>(model)), optimizer, {.graph = false});
           Batch batch = batch_of(mesh, size);
           std::vector<double> times;
           Crowd mine;
           for (int step = 0; step < warm_up + o.steps; ++step) {
             Timeline timeline(rank);
             Clock::time_point begin = Clock::now();
             trainer.step(batch);
             rank.synchronize();
             if (step >= warm_up) times.push_back(seconds_between(begin, Clock::now()));
             timeline.add_update(bytes_of_update(optimizer), 0);
             mine.ideal = timeline.time(h, mesh.shape()).step;
             std::set<uint64_t> groups;
             for (const Activity& a : timeline.activities())
               if (a.kind == Kind::collective) groups.insert(a.group);
             mine.launches = double(groups.size());
           }
           mine.seconds = median(times);
           if (rank.rank() == 0) crowd = mine;
         },
         {.threads = 1, .device = o.device});
  return crowd;
}

// Ranks share cores and memory, and wait for the slowest of them: of large steps with few collectives and of small ones
// with many, how much longer all takes, and what each collective takes besides, by least squares of
// seconds / ideal = slowdown + wait * launches / ideal.
void set_crowd(Hardware& h, const CalibrateOptions& o) {
  std::map<int, double> slowdowns, waits;
  const Size large{128, 8, 128}, small{64, 8, 64};
  for (int ranks : {1, 2, 4, 8}) {
    double n = 0, x1 = 0, xx = 0, y1 = 0, xy = 0;
    auto take = [&](const Size& size, const char* axis, bool fully_sharded) {
      Crowd c = time_crowd(o, h, ranks, size, axis, fully_sharded);
      double x = c.launches / c.ideal, y = c.seconds / c.ideal;
      n += 1, x1 += x, xx += x * x, y1 += y, xy += x * y;
    };
    for (int time = 0; time < 3; ++time) {  // threads start on other cores each time
      take(large, "dp", false);
      if (ranks > 1) take(large, "tp", false), take(small, "tp", false), take(small, "dp", true);
    }
    double det = n * xx - x1 * x1, wait = det > 0 ? std::max(0.0, (n * xy - x1 * y1) / det) : 0;
    if (y1 <= wait * x1) wait = 0;
    waits[ranks] = wait, slowdowns[ranks] = (y1 - wait * x1) / n;
  }
  h.slowdowns = slowdowns, h.waits = waits;
}

}  // namespace

Rate fit(const std::vector<std::pair<double, double>>& samples) {
  double xx = 0, xy = 0, yy = 0, x1 = 0, y1 = 0;  // of x = 1 / seconds, y = work / seconds
  for (const auto& [work, seconds] : samples) {
    if (seconds <= 0) continue;
    double x = 1 / seconds, y = work / seconds;
    xx += x * x, xy += x * y, yy += y * y, x1 += x, y1 += y;
  }
  check(xx > 0, "[fit] none of {} samples took time: measure larger ones", samples.size());
  double det = xx * yy - xy * xy, a = 0, b = 0;
  if (det > 1e-9 * xx * yy) a = (x1 * yy - y1 * xy) / det, b = (xx * y1 - xy * x1) / det;
  if (det <= 1e-9 * xx * yy || a < 0) a = 0, b = yy > 0 ? y1 / yy : 0;
  if (b <= 0) a = x1 / xx, b = 0;
  return {a, b > 0 ? 1 / b : std::numeric_limits<double>::max()};
}

Hardware calibrate(const CalibrateOptions& o) {
  check(o.memory_bytes > 0 && o.cores > 0 && o.steps > 0,
        "[calibrate] {} bytes of memory, {} cores and {} steps: say what the machine has, and how often to measure",
        o.memory_bytes, o.cores, o.steps);
  Hardware h;
  h.name = fmt::format("this machine, {} with {} cores", name(o.device), o.cores);
  h.memory_bytes = o.memory_bytes;
  std::vector<Timed> all = time_steps(o);
  set_memory_bound(h, all);
  set_products(h, all);
  set_attention(h, all);
  h.overlaps = o.device == Device::cuda;  // on the CPU a rank's thread does both
  h.node_devices = 1 << 20;               // ranks are threads of one machine
  h.inside = h.between = time_collectives(o);
  set_crowd(h, o);
  return h;
}

}  // namespace dtensor::nn
