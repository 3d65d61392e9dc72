#include "dtensor/point_to_point.h"

namespace dtensor {
namespace {

void check_tensors(const char* who, const DeviceMesh& mesh, const std::vector<Tensor>& list) {
  Device device = mesh.rank_state().device();
  for (size_t i = 0; i < list.size(); ++i) {
    check(list[i].defined(), "[{}] tensor {} is undefined", who, i);
    check(list[i].device() == device, "[{}] tensor {} is on {}, but the rank's tensors are on {}: bring it there first",
          who, i, name(list[i].device()), name(device));
  }
}

void check_places(const char* who, const std::vector<Tensor>& list) {
  for (size_t i = 0; i < list.size(); ++i)
    check(list[i].is_contiguous(), "[{}] place {} of shape {} is not contiguous: receive into a new tensor", who, i,
          list[i].shape());
}

void check_neighbour(const char* who, const DeviceMesh& mesh, int axis, int peer) {
  int n = mesh.shape().size(axis), mine = mesh.coordinate(axis);
  check(peer >= 0 && peer < n, "[{}] there is no coordinate {} on {}={}", who, peer, mesh.shape().name(axis), n);
  check(mesh.communicator(axis_bit(axis)).are_neighbours(mine, peer),
        "[{}] coordinates {} and {} on {}={} are not next to each other: lanes lead to neighbours on the ring; pass it "
        "on "
        "from one to the next, or use shift",
        who, mine, peer, mesh.shape().name(axis), n);
}

void notify(const DeviceMesh& mesh, CollectiveKind kind, int axis, int peer, const std::vector<Tensor>& moved,
            std::string_view reason) {
  Rank& rank = mesh.rank_state();
  uint64_t group = rank.next_id();
  for (const Tensor& t : moved)
    rank.notify([&](Observer& o) {
      o.on_collective({mesh, kind, axis_bit(axis), t.numel() * itemsize(t.dtype()), t.dtype(), t.dtype(), t.shape(),
                       nullptr, group, reason, true, peer});
    });
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& list) {
  std::vector<Tensor> all;
  for (const Tensor& t : list) all.push_back(t.contiguous());
  return all;
}

}  // namespace

Work send(const DeviceMesh& mesh, std::string_view axis_name, int to, const std::vector<Tensor>& tensors,
          std::string_view reason) {
  int axis = mesh.shape().axis(axis_name, "send");
  check_neighbour("send", mesh, axis, to);
  check_tensors("send", mesh, tensors);
  notify(mesh, CollectiveKind::send, axis, to, tensors, reason);
  return mesh.communicator(axis_bit(axis)).send(contiguous(tensors), to);
}

Work receive(const DeviceMesh& mesh, std::string_view axis_name, int from, const std::vector<Tensor>& places,
             std::string_view reason) {
  int axis = mesh.shape().axis(axis_name, "receive");
  check_neighbour("receive", mesh, axis, from);
  check_tensors("receive", mesh, places);
  check_places("receive", places);
  notify(mesh, CollectiveKind::receive, axis, from, places, reason);
  return mesh.communicator(axis_bit(axis)).receive(places, from);
}

Work shift(const DeviceMesh& mesh, std::string_view axis_name, int distance, const std::vector<Tensor>& tensors,
           const std::vector<Tensor>& places, std::string_view reason) {
  int axis = mesh.shape().axis(axis_name, "shift"), n = mesh.shape().size(axis);
  check(tensors.size() == places.size(), "[shift] {} tensors, but places for {}", tensors.size(), places.size());
  check_tensors("shift", mesh, tensors);
  check_tensors("shift", mesh, places);
  check_places("shift", places);
  std::vector<Buffers> list;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check(tensors[i].dtype() == places[i].dtype(), "[shift] tensor {} is {}, but its place is {}", i,
          name(tensors[i].dtype()), name(places[i].dtype()));
    list.push_back({tensors[i].contiguous(), places[i]});
  }
  int to = int(((mesh.coordinate(axis) + int64_t(distance)) % n + n) % n);
  if (n > 1) notify(mesh, CollectiveKind::shift, axis, to, places, reason);
  return mesh.communicator(axis_bit(axis)).shift(std::move(list), distance);
}

}  // namespace dtensor
