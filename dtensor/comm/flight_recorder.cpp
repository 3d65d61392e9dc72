#include "dtensor/comm/flight_recorder.h"

#include <fmt/format.h>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "placement/error.h"

namespace dtensor {
namespace {

using nlohmann::json;
constexpr const char* state_names[] = {"queued", "started", "done"};

DType dtype_named(const std::string& text) {
  for (DType t : {DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (name(t) == text) return t;
  return DType::f32;
}

bool is_of(const json& entry, const Members& members) {
  return entry["ranks"].get<std::vector<int>>() == members.ranks && entry["lane"] == members.lane &&
         entry["instance"] == members.instance;
}

Signature signature_of(const json& entry) {
  Signature s{entry["name"], {}};
  for (const json& item : entry["items"])
    s.list.push_back({dtype_named(item["dtype"]), item["counts"], item["out_counts"]});
  return s;
}

}  // namespace

std::string Signature::describe() const {
  std::string text = name;
  for (const Item& i : list)
    text += fmt::format(" {}[{}{}{}]", dtensor::name(i.dtype), fmt::join(i.counts, "+"),
                        i.out_counts.empty() ? "" : "->", fmt::join(i.out_counts, "+"));
  return text;
}

bool agree(const Signature& x, int a, const Signature& y, int b) {
  bool message = (x.name == "send" && y.name == "receive") || (x.name == "receive" && y.name == "send");
  if ((x.name != y.name && !message) || x.list.size() != y.list.size()) return false;
  for (size_t i = 0; i < x.list.size(); ++i) {
    const Signature::Item &p = x.list[i], &q = y.list[i];
    if (p.dtype != q.dtype || p.counts.size() != q.counts.size() || p.out_counts.size() != q.out_counts.size())
      return false;
    bool same = p.out_counts.empty()
                    ? p.counts == q.counts
                    : p.out_counts[size_t(b)] == q.counts[size_t(a)] && p.counts[size_t(b)] == q.out_counts[size_t(a)];
    if (!same) return false;
  }
  return true;
}

uint64_t FlightRecorder::add(std::shared_ptr<const Members> members, uint64_t sequence, Signature call) {
  if (entries_.size() == capacity_) entries_.pop_front(), ++first_;
  entries_.push_back({std::move(members), sequence, std::move(call)});
  entries_.back().seen[0] = std::chrono::steady_clock::now();
  return first_ + entries_.size() - 1;
}

void FlightRecorder::reached(uint64_t number, State state) {
  if (number < first_ || entries_[number - first_].state >= state) return;
  Entry& e = entries_[number - first_];
  e.state = state;
  e.seen[int(state)] = std::chrono::steady_clock::now();
}

std::string FlightRecorder::json(const std::string& error, size_t most) const {
  using nlohmann::json;
  json list = json::array();
  for (size_t i = entries_.size() - std::min(entries_.size(), most); i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    json items = json::array();
    for (const Signature::Item& item : e.call.list)
      items.push_back({{"dtype", name(item.dtype)}, {"counts", item.counts}, {"out_counts", item.out_counts}});
    json entry{{"ranks", e.members->ranks},
               {"lane", e.members->lane},
               {"instance", e.members->instance},
               {"sequence", e.sequence},
               {"call", e.call.describe()},
               {"name", e.call.name},
               {"items", items},
               {"state", state_names[int(e.state)]},
               {"queued_s", nullptr},
               {"started_s", nullptr},
               {"done_s", nullptr}};
    for (int s = 0; s < 3; ++s)
      if (e.seen[s] >= made_)
        entry[std::string(state_names[s]) + "_s"] = std::chrono::duration<double>(e.seen[s] - made_).count();
    list.push_back(std::move(entry));
  }
  return json{{"rank", rank_}, {"world", world_}, {"error", error}, {"collectives", list}}.dump();
}

Findings compare(const std::map<int, std::string>& records, const Members& members, uint64_t sequence) {
  Findings found;
  const std::vector<int>& ranks = members.ranks;
  struct First {
    int rank;
    Signature call;
  };
  std::map<uint64_t, First> first;  // who made each collective, of the ranks seen so far
  uint64_t earliest = UINT64_MAX;   // disagreement: what follows it is only its consequence
  for (size_t r = 0; r < ranks.size(); ++r) {
    auto record = records.find(ranks[r]);
    if (record == records.end()) {
      found.silent.push_back(ranks[r]);
      continue;
    }
    bool begun = false;
    json parsed = json::parse(record->second);
    for (const json& entry : parsed["collectives"]) {
      if (!is_of(entry, members)) continue;
      uint64_t number = entry["sequence"];
      begun |= number >= sequence;
      Signature call = signature_of(entry);
      auto [it, is_first] = first.try_emplace(number, First{int(r), call});
      if (is_first || number >= earliest || agree(it->second.call, it->second.rank, call, int(r))) continue;
      earliest = number;
      found.disagreement = fmt::format("ranks {} and {} disagree: \"{}\" and \"{}\"", ranks[size_t(it->second.rank)],
                                       ranks[r], it->second.call.describe(), call.describe());
    }
    if (!begun) found.missing.push_back(ranks[r]);
  }
  return found;
}

std::string last_words(const std::vector<std::pair<Members, uint64_t>>& begun) {
  json list = json::array();
  for (const auto& [members, n] : begun)
    list.push_back({{"ranks", members.ranks}, {"lane", members.lane}, {"instance", members.instance}, {"begun", n}});
  return list.dump();
}

bool will_not_begin(const std::string& last_words, const Members& members, uint64_t sequence) {
  json list = json::parse(last_words);
  return std::any_of(list.begin(), list.end(),
                     [&](const json& entry) { return is_of(entry, members) && entry["begun"] <= sequence; });
}

}  // namespace dtensor
