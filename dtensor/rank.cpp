#include "dtensor/rank.h"

#include <fmt/format.h>

namespace dtensor {
namespace {

[[noreturn]] void none_of(const std::vector<int>& ranks) {
  fail(
      "[Rank::communicator] none was made of ranks {}: communicators are made with a DeviceMesh, of the ranks along "
      "any of its axes; make one, on all ranks together, in which these are such",
      fmt::join(ranks, ","));
}

}  // namespace

std::string Rank::place() const {
  std::string text(label(Label::Kind::op));
  if (std::string_view module = label(Label::Kind::module); !module.empty())
    text.append(text.empty() ? "" : " in ").append(module);
  if (phase == Phase::none) return text;
  std::string_view during = phase == Phase::optimizer ? " step" : " pass";
  return text + fmt::format("{}the {}{}", text.empty() ? "" : " in ", name(phase), during);
}

Communicator& Rank::communicator(const RankGrid& ranks) const {
  if (ranks == RankGrid::whole(world())) return *world_;
  auto it = communicators_.find(ranks);
  if (it == communicators_.end()) none_of(ranks.list());
  return *it->second;
}

Communicator& Rank::communicator(const std::vector<int>& ranks) const {
  if (RankGrid all = RankGrid::whole(world()); int(ranks.size()) == world() && all.list() == ranks) return *world_;
  for (const auto& [grid, communicator] : communicators_)
    if (grid.list() == ranks) return *communicator;
  none_of(ranks);
}

void Rank::make_communicator(const RankGrid& ranks, bool lanes) {
  std::shared_ptr<Communicator> made;
  if (ranks == RankGrid::whole(world()))
    made = world_;
  else if (auto it = communicators_.find(ranks); it != communicators_.end())
    made = it->second;
  else
    made = communicators_[ranks] = world_->split(ranks);
  if (lanes) made->open_lanes();
}

}  // namespace dtensor
