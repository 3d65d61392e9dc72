#include "dtensor/comm/flight_recorder.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

using namespace dtensor;
using State = FlightRecorder::State;

namespace {

const auto world = std::make_shared<const Members>(Members{{0, 1, 2}}),
           row = std::make_shared<const Members>(Members{{0, 2}});

Signature reduce(int64_t n) { return {"all_reduce(sum)", {{DType::f32, {n}}}}; }
Signature gather(std::vector<int64_t> counts) { return {"all_gather", {{DType::i64, std::move(counts)}}}; }
Signature exchange(std::vector<int64_t> in, std::vector<int64_t> out) {
  return {"all_to_all", {{DType::bf16, std::move(in), std::move(out)}}};
}

// A record of these collectives of the world, from `first` on.
std::string record(int rank, const std::vector<Signature>& calls, uint64_t first = 0) {
  FlightRecorder r(rank, 3, 100);
  for (const Signature& s : calls) r.add(world, first++, s), r.add(row, first + 7, reduce(1000 + rank));
  return r.json("");
}

}  // namespace

TEST_CASE("the flight recorder keeps the last collectives and what state they are in") {
  FlightRecorder r(1, 3, 2);
  CHECK(nlohmann::json::parse(r.json("why"))["error"] == "why");
  uint64_t a = r.add(world, 0, reduce(4)), b = r.add(world, 1, reduce(5)), c = r.add(row, 0, gather({1, 2}));
  r.reached(a, State::done);  // gone
  r.reached(b, State::started);
  r.reached(c, State::done);
  r.reached(c, State::started);  // too late
  auto list = nlohmann::json::parse(r.json(""))["collectives"];
  REQUIRE(list.size() == 2);
  CHECK(list[0]["call"] == "all_reduce(sum) f32[5]");
  CHECK(list[0]["state"] == "started");
  CHECK(list[0]["queued_s"] <= list[0]["started_s"]);
  CHECK(list[0]["done_s"].is_null());
  CHECK(list[1]["state"] == "done");
  CHECK(list[1]["ranks"] == std::vector{0, 2});
  CHECK(list[1]["items"][0]["counts"] == std::vector{1, 2});
  CHECK(nlohmann::json::parse(r.json("", 1))["collectives"][0]["call"] == "all_gather i64[1+2]");
}

TEST_CASE("records of ranks tell who is missing and who does something else") {
  struct Case {
    std::map<int, std::string> records;
    uint64_t sequence;
    std::string disagreement;
    std::vector<int> missing, silent;
  };
  for (const Case& c : std::vector<Case>{
           {{{0, record(0, {reduce(4)})}, {1, record(1, {reduce(4)})}, {2, record(2, {reduce(4)})}}, 0, "", {}, {}},
           {{{0, record(0, {reduce(4)})}, {1, record(1, {})}}, 0, "", {1}, {2}},
           {{{0, record(0, {reduce(4), reduce(5)})}, {1, record(1, {reduce(4)})}, {2, record(2, {reduce(9)}, 200)}},
            1,
            "",
            {1},
            {}},  // what rank 2 did at 1 it has forgotten
           {{{0, record(0, {reduce(4), reduce(4)})}, {1, record(1, {gather({1, 1, 1})})}, {2, record(2, {reduce(5)})}},
            1,
            "ranks 0 and 1 disagree: \"all_reduce(sum) f32[4]\" and \"all_gather i64[1+1+1]\"",
            {1, 2},
            {}},
           {{{0, record(0, {reduce(4), reduce(4)})},
             {1, record(1, {reduce(4), reduce(6)})},
             {2, record(2, {reduce(5), reduce(4)})}},
            1,
            "ranks 0 and 2 disagree: \"all_reduce(sum) f32[4]\" and \"all_reduce(sum) f32[5]\"",  // the first one
            {},
            {}},
           {{{1, record(1, {exchange({0, 2, 3}, {4, 2, 5})})}, {2, record(2, {exchange({1, 5, 2}, {0, 3, 2})})}},
            0,
            "",
            {},
            {0}},
           {{{1, record(1, {exchange({0, 2, 3}, {4, 2, 5})})}, {2, record(2, {exchange({1, 6, 2}, {0, 3, 2})})}},
            0,
            "ranks 1 and 2 disagree: \"all_to_all bf16[0+2+3->4+2+5]\" and \"all_to_all bf16[1+6+2->0+3+2]\"",
            {},
            {0}},
       }) {
    Findings found = compare(c.records, *world, c.sequence);
    CHECK(found.disagreement == c.disagreement);
    CHECK(found.missing == c.missing);
    CHECK(found.silent == c.silent);
  }
}

TEST_CASE("a lane is another communicator than that of its two ranks, and a send agrees with its receive") {
  auto pair = std::make_shared<const Members>(Members{{0, 1}}),
       lane = std::make_shared<const Members>(Members{{0, 1}, true});
  auto message = [](const char* name, int64_t n) { return Signature{name, {{DType::f32, {n}}}}; };
  auto record = [&](int rank, const Signature& first, const Signature& second) {
    FlightRecorder r(rank, 2, 100);
    r.add(pair, 0, reduce(4 + rank)), r.add(lane, 0, first), r.add(lane, 1, second);
    return r.json("");
  };
  struct Case {
    Signature first, second;
    std::string disagreement;
  };
  for (const Case& c : std::vector<Case>{
           {message("receive", 4), message("receive", 5), ""},
           {message("receive", 4), message("receive", 6),
            "ranks 0 and 1 disagree: \"send f32[5]\" and \"receive f32[6]\""},
           {message("send", 4), message("send", 5), ""},
       }) {
    auto records = std::map<int, std::string>{{0, record(0, message("send", 4), message("send", 5))},
                                              {1, record(1, c.first, c.second)}};
    CHECK(compare(records, *lane, 1).disagreement == c.disagreement);
    CHECK(compare(records, *pair, 1).disagreement ==
          "ranks 0 and 1 disagree: \"all_reduce(sum) f32[4]\" and "
          "\"all_reduce(sum) f32[5]\"");
    CHECK(compare(records, *lane, 2).missing == std::vector{0, 1});
  }
}

TEST_CASE("the last words of a rank tell what it will not begin") {
  Members lane{{0, 1}, true}, pair{{0, 1}}, again{{0, 1}, false, 1};
  std::string text = last_words({{*world, 3}, {lane, 0}, {pair, 7}, {again, 2}});
  struct Case {
    const Members& members;
    uint64_t sequence;
    bool in_vain;
  };
  for (const Case& c : std::vector<Case>{{*world, 2, false},
                                         {*world, 3, true},
                                         {lane, 0, true},
                                         {pair, 6, false},
                                         {pair, 7, true},
                                         {again, 1, false},
                                         {again, 2, true},
                                         {*row, 0, false}})  // of which nothing is known
    CHECK(will_not_begin(text, c.members, c.sequence) == c.in_vain);
}
