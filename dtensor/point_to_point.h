// Communication between ranks that are next to each other on an axis: stages of a pipeline, rings of attention.
#pragma once

#include "dtensor/device_mesh.h"

namespace dtensor {

// Gives tensors to the rank whose coordinate on `axis` is `to`, or gets those that it gives; the other coordinates are
// this rank's. Both ranks name the same element types and sizes. The axis is a ring: neighbours differ by one, and the
// last and the first are neighbours.
//
// From one rank to another there is a lane. On a lane tensors are received in the order of sends; lanes wait neither
// for each other nor for collectives. So stages may send forward while others send backward, if every rank *starts* its
// receives before it *waits* for a send that the other rank may not be ready to take:
//     Work sent = send(mesh, "pp", next, {activation}), got = receive(mesh, "pp", next, {gradient});
//     sent.wait(), got.wait();
//
// Tensors that are received or given must not be touched before Work::wait(). Observers see one event per tensor.
// Errors: a coordinate that is no neighbour, tensors on another device, a place that is not contiguous.
Work send(const DeviceMesh& mesh, std::string_view axis, int to, const std::vector<Tensor>& tensors,
          std::string_view reason = {});
Work receive(const DeviceMesh& mesh, std::string_view axis, int from, const std::vector<Tensor>& places,
             std::string_view reason = {});

// Along the ring of an axis, every rank gives `tensors` to coordinate + distance, which may be any number, and gets
// into `places` what coordinate - distance gives; of other sizes perhaps. It is a collective of the axis: all its ranks
// start its collectives in the same order. On an axis of one rank, a copy.
Work shift(const DeviceMesh& mesh, std::string_view axis, int distance, const std::vector<Tensor>& tensors,
           const std::vector<Tensor>& places, std::string_view reason = {});

}  // namespace dtensor
