#include "nn/gradient_store.h"

#include "dtensor/local/tree.h"
#include "nn/record.h"
#include "ops/pointwise/binary.h"

namespace dtensor::nn {
namespace {

DistributedTensor sum_of(const DistributedTensor& older, DistributedTensor newer) {
  if (!older.defined()) return newer;
  return newer.defined() ? ops::add(older, newer) : older;
}

// Where a sum goes first: over the axes that shard its leaf, so that what is left to add over others is a part. It is
// the planner's choice by bytes, but that launches are shared by many. Not where it would add over outer axes first.
Layout scattered(const Layout& sum, const Layout& to) {
  AxisSet over_shards = sum.partial & to.sharded(), rest = sum.partial & ~over_shards;
  Layout first = to;
  if (over_shards && rest && (over_shards & -over_shards) > rest) first.partial = rest, first.reduce = sum.reduce;
  return first;
}

std::string reason_of(const std::string& name) { return name.empty() ? "gradient" : "gradient of " + name; }

}  // namespace

void TreeSum::push(DistributedTensor x) {
  for (int count = joins(pushed_++); count > 0; --count) {
    x = sum_of(parts_.back(), std::move(x));
    parts_.pop_back();
  }
  parts_.push_back(std::move(x));
}

DistributedTensor TreeSum::total() const {
  DistributedTensor sum;
  for (size_t i = parts_.size(); i-- > 0;) sum = sum_of(parts_[i], std::move(sum));
  return sum;
}

void GradientStore::add_leaf(const DistributedTensor& leaf, std::optional<DType> gradient, std::string name,
                             int group) {
  check(leaf.defined(), "[watch] the value {} is undefined", name);
  DType dtype = gradient.value_or(leaf.dtype());
  for (DType t : {leaf.dtype(), dtype})
    if (!is_floating(t))
      fail("[watch] {} has no gradient of type {}: only floating types have one", to_string(leaf), dtensor::name(t));
  if (by_id_.contains(leaf.id())) return;  // twice is once
  for (const Record* record : records_)
    if (record->tracks(leaf))
      fail(
          "[watch] {} was computed from a watched value, whose gradient would end here: watch values before they are "
          "used",
          to_string(leaf));
  leaves_.push_back({leaf, dtype, std::move(name), group, {}, {}});
  by_id_.emplace(leaf.id(), &leaves_.back());
  if (group >= 0) groups_[size_t(group)].leaves.push_back(&leaves_.back());
}

void GradientStore::watch(const DistributedTensor& leaf, std::optional<DType> gradient, std::string name) {
  add_leaf(leaf, gradient, std::move(name), -1);
}

void GradientStore::watch_together(const std::vector<DistributedTensor>& leaves, const std::vector<std::string>& names,
                                   std::optional<DType> gradient, const GradientReduction& reduction) {
  check(leaves.size() == names.size(), "[watch_together] {} leaves and {} names", leaves.size(), names.size());
  groups_.push_back({{}, reduction});
  for (size_t i = 0; i < leaves.size(); ++i) add_leaf(leaves[i], gradient, names[i], int(groups_.size()) - 1);
}

void GradientStore::watch_in_buckets(const std::vector<DistributedTensor>& leaves,
                                     const std::vector<std::string>& names, int64_t bytes,
                                     std::optional<DType> gradient) {
  check(leaves.size() == names.size(), "[watch_in_buckets] {} leaves and {} names", leaves.size(), names.size());
  int64_t full = bytes;  // of the bucket that is being filled: at first there is none
  for (size_t i = leaves.size(); i-- > 0;) {
    if (full >= bytes) groups_.emplace_back(), full = 0;
    add_leaf(leaves[i], gradient, names[i], int(groups_.size()) - 1);
    full += numel(leaves[i].spec().local_shape) * itemsize(gradient.value_or(leaves[i].dtype()));
  }
}

DistributedTensor GradientStore::gradient(const DistributedTensor& leaf) const {
  check(leaf.defined(), "[gradient] the value is undefined");
  auto it = by_id_.find(leaf.id());
  if (it == by_id_.end()) return {};
  NoGrad scope(rank_);
  DistributedTensor reduced = it->second->reduced.total(), arrived = it->second->arrived.total();
  if (reduced.defined() && arrived.defined()) reduced = reduced.redistribute(reduced.layout());  // to the device
  return sum_of(reduced, arrived);
}

std::vector<DistributedTensor> GradientStore::reduce(const std::vector<DistributedTensor>& leaves) {
  std::vector<Leaf*> found;
  for (const DistributedTensor& x : leaves) {
    auto it = x.defined() ? by_id_.find(x.id()) : by_id_.end();
    check(it != by_id_.end(), "[reduce] {} is not watched", to_string(x));
    found.push_back(it->second);
  }
  NoGrad scope(rank_);
  std::vector<DistributedTensor> sums, all;
  std::vector<Leaf*> arrived;
  std::vector<size_t> index;  // in `leaves`
  for (size_t i = 0; i < found.size(); ++i) {
    all.push_back(found[i]->reduced.total());
    DistributedTensor sum = found[i]->arrived.total();
    if (!sum.defined()) continue;
    index.push_back(i);
    arrived.push_back(found[i]);
    sums.push_back(std::move(sum));
  }
  std::vector<ToHost> to_host;
  sums = OnItsWay(*this, std::move(arrived), std::move(sums)).finish(to_host);
  land(to_host);
  for (size_t k = 0; k < sums.size(); ++k) all[index[k]] = sum_of(all[index[k]], sums[k]);
  for (size_t i = 0; i < all.size(); ++i) {
    const LocalSpec& spec = found[i]->value.spec();
    const DeviceMesh& mesh = found[i]->value.mesh();
    const DistributedTensor& value = found[i]->value;
    if (!all[i].defined())
      all[i] = DistributedTensor::empty(mesh, mesh.intern({found[i]->dtype, spec.shape, spec.layout}),
                                        Tensor::zeros(value.is_on_host() ? rank_.host_allocator() : rank_.allocator(),
                                                      found[i]->dtype, spec.local_shape, value.local().device()));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    found[i]->arrived = {}, found[i]->reduced = {};
    found[i]->reduced.push(all[i]);
  }
  return all;
}

void GradientStore::clear() {
  for (Leaf& leaf : leaves_) leaf.arrived = {}, leaf.reduced = {};
}

GradientStore::Pass::Pass(GradientStore& store, std::vector<int> uses, bool reduce)
    : store_(store), uses_(std::move(uses)), reduce_(reduce) {
  uses_.resize(store.groups_.size());
}

void GradientStore::Pass::passed(Leaf& leaf) {
  using When = GradientReduction::When;
  When when = store_.groups_[size_t(leaf.group)].reduction.when;
  if (--uses_[size_t(leaf.group)] == 0 && (when == When::each_pass || (when == When::last_pass && reduce_)))
    begin_reduce(leaf.group);
}

GradientStore::OnItsWay::OnItsWay(const GradientStore& store, std::vector<Leaf*> of,
                                  std::vector<DistributedTensor> sums)
    : leaves(std::move(of)) {
  std::vector<Layout> layouts;
  std::vector<std::string> reasons;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const Leaf& leaf = *leaves[i];
    layouts.push_back(scattered(sums[i].layout(), leaf.value.layout()));
    reasons.push_back(reason_of(leaf.name));
    dtypes.push_back(leaf.group < 0 ? std::nullopt : store.groups_[size_t(leaf.group)].reduction.dtype);
  }
  redistribution = Redistribution::begin(sums, layouts, {.reasons = reasons, .reduce_dtypes = dtypes});
}

std::vector<DistributedTensor> GradientStore::OnItsWay::finish(std::vector<ToHost>& to_host) {
  std::vector<Layout> layouts;
  std::vector<std::string> reasons;
  for (const Leaf* leaf : leaves) layouts.push_back(leaf->value.layout()), reasons.push_back(reason_of(leaf->name));
  std::vector<DistributedTensor> list =
      redistribute(redistribution.finish(), layouts, {.reasons = reasons, .reduce_dtypes = dtypes});
  auto goes = [](const Leaf* leaf) { return leaf->value.is_on_host(); };
  if (std::any_of(leaves.begin(), leaves.end(), goes)) to_host.clear();
  for (size_t i = 0; i < list.size(); ++i) {
    if (!goes(leaves[i])) continue;
    const DistributedTensor x = list[i];
    Rank& rank = x.mesh().rank_state();
    rank.notify([&](Observer& o) { o.on_host_copy(x); });
    Tensor part(rank.host_allocator(), x.dtype(), x.spec().local_shape, x.local().device());
    to_host.push_back({x, copy_async(x.local().contiguous(), part)});
    list[i] = DistributedTensor::empty(x.mesh(), &x.spec(), part);
  }
  return list;
}

// Copies that were let go of are waited for by the stream, and the host waits for that.
void GradientStore::land(std::vector<ToHost>& to_host) {
  if (to_host.empty()) return;
  to_host.clear();
  rank_.synchronize();
}

void GradientStore::Pass::begin_reduce(int group) {
  std::vector<Leaf*> leaves;
  std::vector<DistributedTensor> sums;
  for (Leaf* leaf : store_.groups_[size_t(group)].leaves) {
    TreeSum all = leaf->arrived;
    all.push(std::move(sums_[leaf]));
    sums_.erase(leaf);
    DistributedTensor sum = all.total();
    if (!sum.defined()) continue;
    leaves.push_back(leaf);
    sums.push_back(std::move(sum));
  }
  if (leaves.empty()) return;
  if (int(on_their_way_.size()) == store_.options_.in_flight) finish_first();
  on_their_way_.emplace_back(store_, std::move(leaves), std::move(sums));
}

void GradientStore::Pass::finish_first() {
  std::vector<DistributedTensor> list = on_their_way_.front().finish(to_host_);
  for (size_t i = 0; i < list.size(); ++i) reduced_[on_their_way_.front().leaves[i]] = list[i];
  on_their_way_.pop_front();
}

void GradientStore::Pass::commit() {
  while (!on_their_way_.empty()) finish_first();
  store_.land(to_host_);
  // All sums first, so that an error on the way leaves the store as it was.
  std::vector<std::pair<TreeSum, TreeSum>> next;
  for (Leaf& leaf : store_.leaves_) {
    auto& [arrived, reduced] = next.emplace_back(leaf.arrived, leaf.reduced);
    auto it = reduced_.find(&leaf);
    if (it != reduced_.end()) {
      arrived = {};
      reduced.push(std::move(it->second));
    } else {
      arrived.push(std::move(sums_[&leaf]));
    }
  }
  for (size_t i = 0; i < next.size(); ++i)
    store_.leaves_[i].arrived = std::move(next[i].first), store_.leaves_[i].reduced = std::move(next[i].second);
}

}  // namespace dtensor::nn
