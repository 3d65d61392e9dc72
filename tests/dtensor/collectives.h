// What every communicator is to do, for the tests of those that move data.
#pragma once

#include <cstring>
#include <numeric>

#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

namespace dtensor::testing {

inline const auto heap = std::make_shared<Allocator>();

// Rank r's element i of tensor `item`: in floats the order of a sum shows.
template <class T>
T input(int rank, size_t item, int64_t i) {
  Random random{mix(mix(uint64_t(rank) + 1) + item) + uint64_t(i)};
  if constexpr (std::is_same_v<T, bool>)
    return random.below(4) == 0;
  else if constexpr (std::is_same_v<T, int64_t>)
    return random.below(101) - 50;  // products of 8 fit
  else
    return T(random.rough());
}

template <class T>
Tensor inputs(int rank, size_t item, int64_t n) {
  Tensor t(heap, dtype_of<T>::value, {n});
  for (int64_t i = 0; i < n; ++i) t.data<T>()[i] = input<T>(rank, item, i);
  return t;
}

template <class T>
T reduction(Reduce r, int ranks, size_t item, int64_t i) {
  std::vector<T> v;
  for (int q = 0; q < ranks; ++q) v.push_back(input<T>(q, item, i));
  if constexpr (std::is_same_v<T, bool>) {
    bool any = false, all = true;
    for (bool b : v) any |= b, all &= b;
    return r == Reduce::product || r == Reduce::min ? all : any;
  } else {
    return reduced(r, v);
  }
}

template <class T>
void expect(const Tensor& got, int64_t at, T want, const char* what) {
  T v = got.data<T>()[at];
  check(std::memcmp(&v, &want, sizeof(T)) == 0, "{}: element {} is {}, not {}", what, at, v, want);
}

// Pieces of n that no chunk rule would give; some are empty.
inline std::vector<int64_t> uneven(int64_t n, int ranks, uint64_t seed) {
  std::vector<int64_t> counts{std::vector<int64_t>(size_t(ranks))};
  for (int64_t left = n; left > 0;) {
    int64_t some = std::min<int64_t>(left, 1 + int64_t(mix(seed + uint64_t(left)) % uint64_t(n)));
    counts[mix(seed ^ uint64_t(left)) % uint64_t(ranks)] += some, left -= some;
  }
  return counts;
}

inline int64_t before(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t(0));
}

// Each collective on the given sizes, one launch for all of them.
template <class T>
void all_collectives(Communicator& c, const std::vector<int64_t>& sizes, uint64_t seed) {
  int me = c.rank(), n = c.size();
  size_t items = sizes.size();
  for (Reduce r : all_reductions) {
    if (std::is_same_v<T, bool> && r == Reduce::avg) continue;
    std::vector<Buffers> list, scatter;
    for (size_t k = 0; k < items; ++k) {
      list.push_back({inputs<T>(me, k, sizes[k]), Tensor(heap, dtype_of<T>::value, {sizes[k]})});
      std::vector<int64_t> counts = uneven(sizes[k], n, seed + k);
      scatter.push_back({inputs<T>(me, k, sizes[k]), Tensor(heap, dtype_of<T>::value, {counts[size_t(me)]}), counts});
    }
    Work first = c.all_reduce(list, r), second = c.reduce_scatter(scatter, r);
    second.wait(), first.wait();  // in any order
    for (size_t k = 0; k < items; ++k) {
      for (int64_t i = 0; i < sizes[k]; ++i) expect(list[k].out, i, reduction<T>(r, n, k, i), "all_reduce");
      for (int64_t i = 0, at = before(scatter[k].counts, me); i < scatter[k].out.numel(); ++i)
        expect(scatter[k].out, i, reduction<T>(r, n, k, at + i), "reduce_scatter");
    }
  }
  std::vector<Buffers> gather, exchange;
  for (size_t k = 0; k < items; ++k) {
    std::vector<int64_t> counts = uneven(sizes[k], n, seed + k), send, receive;
    for (int q = 0; q < n; ++q) {
      send.push_back(uneven(sizes[k], n, seed + k + 100 * size_t(me))[size_t(q)]);
      receive.push_back(uneven(sizes[k], n, seed + k + 100 * size_t(q))[size_t(me)]);
    }
    gather.push_back({inputs<T>(me, k, counts[size_t(me)]), Tensor(heap, dtype_of<T>::value, {sizes[k]}), counts});
    exchange.push_back(
        {inputs<T>(me, k, sizes[k]), Tensor(heap, dtype_of<T>::value, {before(receive, n)}), send, receive});
  }
  c.all_gather(gather).wait();
  c.barrier();
  c.all_to_all(exchange).wait();
  for (size_t k = 0; k < items; ++k)
    for (int q = 0; q < n; ++q) {
      int64_t at = before(gather[k].counts, q);
      for (int64_t i = 0; i < gather[k].counts[size_t(q)]; ++i)
        expect(gather[k].out, at + i, input<T>(q, k, i), "all_gather");
      int64_t sent = before(uneven(sizes[k], n, seed + k + 100 * size_t(q)), me);
      at = before(exchange[k].out_counts, q);
      for (int64_t i = 0; i < exchange[k].out_counts[size_t(q)]; ++i)
        expect(exchange[k].out, at + i, input<T>(q, k, sent + i), "all_to_all");
    }
}

}  // namespace dtensor::testing
