#include "dtensor/comm/communicator.h"

#include <catch2/catch.hpp>

#include <atomic>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "tests/dtensor/collectives.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::Equals;
using Catch::Matchers::StartsWith;

namespace {

// Runs f(communicator) on n threads; returns what each threw, "" for nothing.
std::vector<std::string> on_ranks(int n, const std::function<void(Communicator&)>& f,
                                  std::chrono::milliseconds deadline = 20s) {
  auto communicators = make_thread_communicators(n, deadline);
  std::vector<std::string> errors{size_t(n)};
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] { errors[size_t(r)] = error_of([&] { f(*communicators[size_t(r)]); }); });
  for (std::thread& t : threads) t.join();
  return errors;
}

const std::vector<std::string> quiet(const std::vector<std::string>& errors) {
  return std::vector<std::string>(errors.size());
}

}  // namespace

TEST_CASE("law 6: collectives on threads and sums in the balanced tree of ranks") {
  for (int n : {1, 2, 3, 4, 5, 8}) {
    auto errors = on_ranks(n, [](Communicator& c) {
      for (int64_t size : {0, 1, 4, 1000, 5000}) all_collectives<float>(c, {size}, 1);
      all_collectives<float>(c, {0, 1, 4, 1000, 2048, 2049, 5000, 0}, 2);
      all_collectives<double>(c, {7, 3000}, 3);
      all_collectives<int64_t>(c, {7, 3000}, 4);
      all_collectives<bool>(c, {7, 3000}, 5);
    });
    CHECK(errors == quiet(errors));
  }
}

TEST_CASE("a rank that is ahead of others holds of a collective only what they still read") {
  // Of 3000 floats from each of two ranks, the second comes by when the first has looked. All-reduce meets again.
  const int64_t n = 3000, bytes = n * 4;
  auto held = [&](const std::function<Work(Communicator&, Buffers)>& start, int64_t in_size, int64_t out_size) {
    std::atomic<bool> looked = false;
    int64_t left = -1;
    auto errors = on_ranks(2, [&](Communicator& c) {
      auto allocator = std::make_shared<Allocator>();
      Work work;
      {
        Tensor in(allocator, DType::f32, {in_size}), out(allocator, DType::f32, {out_size});
        fill(in, 1);
        work = start(c, {in, out, {n, n}, {n, n}});
      }
      while (c.rank() == 1 && !looked) std::this_thread::yield();
      work.wait();
      if (c.rank() == 0) left = allocator->bytes_in_use(), looked = true;
    });
    CHECK(errors == quiet(errors));
    return left;
  };
  CHECK(held([](Communicator& c, Buffers b) { return c.all_gather({b}); }, n, 2 * n) == bytes);
  CHECK(held([](Communicator& c, Buffers b) { return c.reduce_scatter({b}, Reduce::sum); }, 2 * n, n) == 2 * bytes);
  CHECK(held([](Communicator& c, Buffers b) { return c.all_to_all({b}); }, 2 * n, 2 * n) == 2 * bytes);
}

TEST_CASE("ranks that have met again after an all-reduce hold nothing of it") {
  std::vector<int64_t> left(2, -1);
  auto errors = on_ranks(2, [&](Communicator& c) {
    auto allocator = std::make_shared<Allocator>();
    Tensor in(allocator, DType::f32, {3000}), out(allocator, DType::f32, {3000});
    fill(in, 1);
    Work work = c.all_reduce({{in, out}}, Reduce::sum);
    in = out = {};
    work.wait();
    left[size_t(c.rank())] = allocator->bytes_in_use();
  });
  CHECK(errors == quiet(errors));
  CHECK(left == std::vector<int64_t>{0, 0});
}

TEST_CASE("the balanced tree by example") {
  // The halves of n ranks are the first n / 2 and the rest; the small and the divided path agree.
  for (int64_t size : {1, 5000}) {
    auto sum = [&](int n, std::vector<float> v) {
      float result = 0;
      auto errors = on_ranks(n, [&](Communicator& c) {
        Tensor in(heap, DType::f32, {size}), out(heap, DType::f32, {size});
        fill(in, v[size_t(c.rank())]);
        c.all_reduce({{in, out}}, Reduce::sum).wait();
        for (int64_t i = 0; i < size; ++i)
          check(out.data<float>()[i] == out.data<float>()[0], "all elements are the same");
        if (c.rank() == c.size() - 1) result = out.data<float>()[size - 1];
      });
      CHECK(errors == quiet(errors));
      return result;
    };
    float big = 1 << 24;                          // big + 1 is big
    CHECK(sum(3, {big, 1, 1}) == big + 2);        // big + (1 + 1)
    CHECK(sum(3, {1, 1, big}) == big);            // 1 + (1 + big)
    CHECK(sum(4, {1, 1, 1, big}) == big + 2);     // (1 + 1) + (1 + big)
    CHECK(sum(5, {1, 1, big, 1, 1}) == big + 4);  // (1 + 1) + (big + (1 + 1))
  }
}

TEST_CASE("communicators split and their collectives may be interleaved") {
  for (int n : {2, 4, 6}) {
    auto errors = on_ranks(n, [n](Communicator& world) {
      int me = world.rank(), half = n / 2;
      RankGrid row = RankGrid(me / half * half).with(half, 1), column = RankGrid(me % half).with(2, half),
               backwards = RankGrid(n - 1).with(n, -1);
      auto a = world.split(row), b = world.split(column), c = world.split(backwards);
      check(a->size() == half && a->rank() == me % half && b->size() == 2 && b->rank() == me / half,
            "ranks in the order given");
      check(c->rank() == n - 1 - me, "ranks in the order given");
      for (int round = 0; round < 20; ++round) {
        Tensor in(heap, DType::i64, {3}), x(heap, DType::i64, {3}), y(heap, DType::i64, {3}),
            z(heap, DType::i64, {3 * n});
        fill(in, me + 100 * round);
        Work first = a->all_reduce({{in, x}}, Reduce::sum), second = b->all_reduce({{in, y}}, Reduce::sum);
        Work third = c->all_gather({{in, z, std::vector<int64_t>(size_t(n), 3)}});
        if (me % 2)
          third.wait(), second.wait(), first.wait();
        else
          first.wait(), third.wait(), second.wait();
        int64_t row_sum = 0;
        for (int r : row.list()) row_sum += r + 100 * round;
        check(x.data<int64_t>()[2] == row_sum, "the row's sum");
        check(y.data<int64_t>()[2] == column[0] + column[1] + 200 * round, "the column's sum");
        for (int r = 0; r < n; ++r)
          check(z.data<int64_t>()[3 * r] == n - 1 - r + 100 * round, "pieces in the order of ranks");
      }
      check(world.split(row)->size() == half, "the same ranks again");
    });
    CHECK(errors == quiet(errors));
  }
  auto errors = on_ranks(2, [](Communicator& world) { world.split(RankGrid(1 - world.rank())); });
  CHECK(errors[0] == "[split] rank 0 is not among the ranks of the new communicator");
  CHECK(errors[1] == "[split] rank 1 is not among the ranks of the new communicator");
}

TEST_CASE("law 9: calls that disagree are reported on every rank with both calls") {
  auto tensor = [](DType t, int64_t n) { return Tensor::zeros(heap, t, {n}); };
  auto reduce = [=](int64_t n, DType t = DType::f32, Reduce r = Reduce::sum) {
    return [=](Communicator& c) { c.all_reduce({{tensor(t, n), tensor(t, n)}}, r).wait(); };
  };
  auto gather = [=](std::vector<int64_t> counts) {
    return [=](Communicator& c) {
      c.all_gather({{tensor(DType::f32, counts[size_t(c.rank())]), tensor(DType::f32, 9), counts}}).wait();
    };
  };
  auto scatter = [=](std::vector<int64_t> counts) {
    return [=](Communicator& c) {
      c.reduce_scatter({{tensor(DType::f32, 9), tensor(DType::f32, counts[size_t(c.rank())]), counts}}, Reduce::max)
          .wait();
    };
  };
  auto exchange = [=](std::vector<int64_t> send, std::vector<int64_t> receive) {
    return [=](Communicator& c) {
      c.all_to_all({{tensor(DType::f32, 9), tensor(DType::f32, 9), send, receive}}).wait();
    };
  };
  auto barrier = [](Communicator& c) { c.barrier(); };
  struct Case {
    std::function<void(Communicator&)> first, second;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{
           {reduce(4), reduce(5), "\"all_reduce(sum) f32[4]\" and \"all_reduce(sum) f32[5]\""},
           {reduce(4), reduce(4, DType::i64), "\"all_reduce(sum) f32[4]\" and \"all_reduce(sum) i64[4]\""},
           {reduce(4), reduce(4, DType::f32, Reduce::max), "\"all_reduce(sum) f32[4]\" and \"all_reduce(max) f32[4]\""},
           {reduce(4), barrier, "\"all_reduce(sum) f32[4]\" and \"barrier\""},
           {reduce(9), gather({4, 5}), "\"all_reduce(sum) f32[9]\" and \"all_gather f32[4+5]\""},
           {gather({4, 5}), gather({5, 4}), "\"all_gather f32[4+5]\" and \"all_gather f32[5+4]\""},
           {scatter({4, 5}), scatter({9, 0}), "\"reduce_scatter(max) f32[4+5]\" and \"reduce_scatter(max) f32[9+0]\""},
           {exchange({2, 2}, {2, 2}), exchange({3, 3}, {3, 3}),
            "\"all_to_all f32[2+2->2+2]\" and \"all_to_all f32[3+3->3+3]\""},
           {[=](Communicator& k) { k.all_reduce({}, Reduce::sum).wait(); }, reduce(4),
            "\"all_reduce(sum)\" and \"all_reduce(sum) f32[4]\""},
       })
    for (bool swapped : {false, true}) {
      auto errors = on_ranks(2, [&](Communicator& k) {
        ((k.rank() == 1) == swapped ? c.first : c.second)(k);
        k.barrier();  // a rank that did not see it in its own call sees it in the next
      });
      std::string text = c.error, both = text;
      if (swapped) {  // rank 0 makes the second call
        size_t middle = text.find(" and ");
        both = text.substr(middle + 5) + " and " + text.substr(0, middle);
      }
      CHECK(errors[0] == "[collective] ranks 0 and 1 disagree: " + both);
      CHECK(errors[1] == errors[0]);
    }
  // Of more ranks all hear of it, whoever is the odd one out.
  for (int odd = 0; odd < 4; ++odd) {
    auto errors = on_ranks(4, [&](Communicator& k) { reduce(k.rank() == odd ? 3 : 4)(k); });
    for (auto& e : errors)
      CHECK_THAT(e,
                 StartsWith("[collective] ranks ") && Contains("disagree") && Contains("f32[3]") && Contains("f32[4]"));
    CHECK(std::set(errors.begin(), errors.end()).size() == 1);
  }
}

TEST_CASE("bf16 is summed in float32 and rounded once") {
  auto bf16 = [](std::initializer_list<float> list) {
    std::vector<BFloat16> v(list.begin(), list.end());
    return Tensor::of<BFloat16>({int64_t(v.size())}, v);
  };
  std::vector<std::vector<float>> found(4);
  on_ranks(4, [&](Communicator& c) {
    // 256 + 1 is 256 in bf16, but 256 + 1 + 0 + 1 is 258; the mean of 1, 2, 3, 4; the largest.
    float r = float(c.rank());
    Tensor sum = bf16({r == 0 ? 256.f : r == 2 ? 0.f : 1.f}), mean = bf16({r + 1}), most = bf16({-r});
    Tensor out[] = {sum.clone(), mean.clone(), most.clone()};
    c.all_reduce({{sum, out[0]}}, Reduce::sum).wait();
    c.all_reduce({{mean, out[1]}}, Reduce::avg).wait();
    c.all_reduce({{most, out[2]}}, Reduce::max).wait();
    for (const Tensor& t : out) found[size_t(c.rank())].push_back(t.data<BFloat16>()[0]);
  });
  for (const auto& f : found) CHECK(f == std::vector<float>{258, 2.5, 0});
}

TEST_CASE("law 9: a wait ends at the deadline and says who is missing") {
  auto start = std::chrono::steady_clock::now();
  auto errors = on_ranks(
      4,
      [](Communicator& c) {
        if (c.rank() == 2) return;
        Tensor t = Tensor::zeros(heap, DType::f32, {4});
        c.all_reduce({{t, t.clone()}}, Reduce::sum).wait();
      },
      50ms);
  CHECK(std::chrono::steady_clock::now() - start < 10s);
  CHECK(errors[2].empty());
  for (size_t r : {0, 1, 3}) {
    CHECK_THAT(errors[r], StartsWith("[all_reduce] not complete after 0.05 s: rank ") &&
                              Contains(" waits for rank 2 in all_reduce(sum) f32[4]"));
    CHECK(errors[r] == errors[0]);
  }
  // In a group that was split off, ranks are still those of the world.
  errors = on_ranks(
      4,
      [](Communicator& c) {
        auto part = c.split(RankGrid(c.rank() / 2 * 2).with(2, 1));
        if (c.rank() >= 2) c.rank() == 2 ? part->barrier() : void();
      },
      50ms);
  CHECK(errors == std::vector<std::string>{
                      "", "", "[barrier] not complete after 0.05 s: rank 2 waits for rank 3 in barrier", ""});
}

TEST_CASE("law 9: abort ends every wait with its reason") {
  auto start = std::chrono::steady_clock::now();
  auto errors = on_ranks(5, [](Communicator& c) {
    auto part = c.split(c.rank() < 3 ? RankGrid::whole(3) : RankGrid(3).with(2, 1));
    if (c.rank() == 3) {
      c.abort("the disk is full");
      c.abort("a later reason");
    }
    c.rank() == 4 ? part->barrier() : c.barrier();
  });
  CHECK(std::chrono::steady_clock::now() - start < 10s);
  for (auto& e : errors) CHECK(e == "the disk is full");
}

namespace {

Tensor of(const std::vector<float>& v) { return tensor_of<float>(heap, {int64_t(v.size())}, v); }
Tensor room(int64_t n) { return Tensor::zeros(heap, DType::f32, {n}); }

}  // namespace

TEST_CASE("messages of a lane come in order, and lanes do not wait for each other") {
  for (int n : {2, 3, 4, 7}) {
    auto errors = on_ranks(n, [n](Communicator& c) {
      int me = c.rank();
      std::vector<int> neighbours{(me + 1) % n};
      if (n > 2) neighbours.push_back((me + n - 1) % n);
      auto value = [](int from, int to, int round) { return float(100 * from + 10 * to + 1000 * round); };
      for (int round = 0; round < 20; ++round) {
        std::vector<Work> work;
        std::vector<std::pair<Tensor, float>> wanted;
        // On some ranks sends are first, on others receives; waiting comes after, in any order.
        for (bool sends : {(me + round) % 2 == 0, (me + round) % 2 != 0})
          for (int peer : neighbours)
            for (int k = 0; k < 3; ++k)
              if (sends) {
                work.push_back(c.send({of({value(me, peer, round) + float(k)}), of({})}, peer));
              } else {
                wanted.emplace_back(room(1), value(peer, me, round) + float(k));
                work.push_back(c.receive({wanted.back().first, room(0)}, peer));
              }
        if (round % 3 == 0) std::reverse(work.begin(), work.end());
        if (round % 5 == 0) c.barrier();  // collectives are apart from lanes
        for (Work& w : work) w.wait();
        for (auto& [tensor, want] : wanted)
          check(tensor.data<float>()[0] == want, "rank {} got {}, not {}", me, tensor.data<float>()[0], want);
      }
    });
    CHECK(errors == quiet(errors));
  }
}

TEST_CASE("a message is taken when both ranks have come, whoever waits") {
  auto errors = on_ranks(2, [](Communicator& c) {
    for (int64_t size : {0, 1, 100000}) {
      Tensor out = room(size), in = room(size);
      fill(in, 1 + c.rank());
      Work sent = c.send({in}, 1 - c.rank()), got = c.receive({out}, 1 - c.rank());
      sent.wait();  // the other waits for its own send too
      got.wait();
      for (float v : values<float>(out)) check(v == float(2 - c.rank()), "what the other gave");
    }
  });
  CHECK(errors == quiet(errors));
}

TEST_CASE("law 9: a message that the two ranks mean otherwise is an error on both") {
  auto all = [](std::vector<Tensor> list) { return list; };
  Tensor i = Tensor::zeros(heap, DType::i64, {4});
  struct Case {
    std::vector<Tensor> sent, received;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{
           {all({room(4)}), all({room(5)}), "\"send f32[4]\" and \"receive f32[5]\""},
           {all({room(4)}), all({i}), "\"send f32[4]\" and \"receive i64[4]\""},
           {all({room(4)}), all({room(4), room(1)}), "\"send f32[4]\" and \"receive f32[4] f32[1]\""},
           {all({}), all({room(0)}), "\"send\" and \"receive f32[0]\""},
       })
    for (bool late : {false, true}) {
      auto errors = on_ranks(3, [&](Communicator& k) {
        if (k.rank() == int(late)) std::this_thread::sleep_for(5ms);
        if (k.rank() == 0) k.send(c.sent, 1).wait();
        if (k.rank() == 1) k.receive(c.received, 0).wait();
        k.barrier();
      });
      for (auto& e : errors) CHECK(e == std::string("[collective] ranks 0 and 1 disagree: ") + c.error);
    }
}

TEST_CASE("law 9: a shift that ranks mean otherwise is an error on all") {
  struct Case {
    std::function<Work(Communicator&)> call;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{
           {[](Communicator& k) {
              return k.shift({{room(4), room(4)}}, 1 + k.rank() / 2);
            },
            "\"shift(1) f32[4->4]\" and \"shift(2) f32[4->4]\""},
           {[](Communicator& k) {
              return k.shift({{room(4 + k.rank() / 2), room(4)}}, 1);
            },
            "\"shift(1) f32[4->4]\" and \"shift(1) f32[5->4]\""},
       }) {
    auto errors = on_ranks(3, [&](Communicator& k) {
      c.call(k).wait();
      k.barrier();
    });
    for (auto& e : errors) CHECK_THAT(e, StartsWith("[collective] ranks ") && Contains(c.error));
  }
}

TEST_CASE("law 9: a message that does not come ends at the deadline, or when its rank ends") {
  auto start = std::chrono::steady_clock::now();
  auto receive = [](Communicator& c) {
    if (c.rank() == 0) c.receive({room(4)}, 1).wait();
    if (c.rank() == 1) c.barrier();
  };
  auto errors = on_ranks(2, receive, 50ms);
  for (auto& e : errors)
    CHECK_THAT(e, Equals("[receive] not complete after 0.05 s: rank 0 waits for rank 1 in receive f32[4]") ||
                      Equals("[barrier] not complete after 0.05 s: rank 1 waits for rank 0 in barrier"));
  errors = on_ranks(2, [](Communicator& c) {
    if (c.rank() == 0) c.send({room(4)}, 1).wait();
    if (c.rank() == 1) c.end();
  });
  CHECK(errors[0] == "[send] rank 1 has ended (its function returned), but rank 0 waits for it in send f32[4]");
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

TEST_CASE("work that is dropped is waited for, as others count on it") {
  int64_t before = heap->bytes_in_use();
  for (int dropping : {0, 1, 2}) {
    auto errors = on_ranks(3, [&](Communicator& c) {
      for (int round = 0; round < 10; ++round) {
        std::vector<Buffers> list{{room(5000), room(5000)}};  // of which each rank adds a third
        fill(list[0].in, 1);
        Work work = c.all_reduce(list, Reduce::sum);
        if (c.rank() == dropping)
          work = Work();
        else
          work.wait();
        for (float v : values<float>(list[0].out)) check(v == 3, "the sum is {}", v);
        c.shift({{room(10), room(10)}}, 1);
        Work sent = c.send({room(10)}, (c.rank() + 1) % 3), got = c.receive({room(10)}, (c.rank() + 2) % 3);
      }
    });
    CHECK(errors == quiet(errors));
  }
  CHECK(heap->bytes_in_use() == before);
}

TEST_CASE("law 9: work is abandoned once the world has failed, and while an exception passes") {
  auto start = std::chrono::steady_clock::now();
  auto errors = on_ranks(3, [&](Communicator& c) {
    Tensor mine = room(5000);
    if (c.rank() == 0) {  // the others never come to the second one
      Work first = c.all_gather({{room(1), room(3), {1, 1, 1}}}),
           second = c.all_reduce({{mine, room(5000)}}, Reduce::sum);
      fail("the disk is full");
    }
    Work first = c.all_gather({{room(1), room(3), {1, 1, 1}}});
    first.wait();  // rank 0 has abandoned it, but its tensors are there
    if (c.rank() == 1) c.abort("stop");
    { Work dropped = c.receive({room(4)}, 0); }
  });
  CHECK(errors[0] == "the disk is full");
  for (size_t r : {1, 2}) CHECK_THAT(errors[r], Equals("") || Equals("stop"));
  CHECK(std::chrono::steady_clock::now() - start < 10s);
  // What a dropped one met, the next call throws.
  errors = on_ranks(
      2,
      [](Communicator& c) {
        if (c.rank() == 0) c.all_reduce({{room(4), room(4)}}, Reduce::sum);
        if (c.rank() == 1) std::this_thread::sleep_for(100ms);
        c.end();
      },
      50ms);
  for (auto& e : errors)
    CHECK(e == "[all_reduce] not complete after 0.05 s: rank 0 waits for rank 1 in all_reduce(sum) f32[4]");
}

TEST_CASE("the recorded communicator moves nothing and refuses bytes") {
  auto c = make_recorded_communicator(8);
  CHECK((c->rank() == 0 && c->size() == 8));
  CHECK(c->split(RankGrid(0).with(3, 2))->size() == 3);
  Tensor meta(heap, DType::f32, {4}, Device::meta), real = Tensor::zeros(heap, DType::f32, {4});
  c->all_reduce({{meta, meta}}, Reduce::sum).wait();
  c->all_to_all({{meta, meta, {}, {}}}).wait();
  c->barrier();
  CHECK_THROWS_WITH(c->all_gather({{meta, real, {}}}),
                    Equals("[all_gather] the recorded communicator moves no data, but a tensor of 4 elements has "
                           "bytes: run on meta tensors"));
  CHECK_THROWS_WITH(c->abort("why"), Equals("why"));
}
