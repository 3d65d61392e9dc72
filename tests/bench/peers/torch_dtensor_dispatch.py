#!/usr/bin/env python3
"""Host time of one cached op of PyTorch's DTensor, to compare with tests/bench/dispatch.cpp: add of two Shard(0) tensors of
8 elements on a CPU mesh of 2 ranks. Nothing is communicated, so ranks do not wait for each other; rank 0 measures.

Needs PyTorch 2.5 or newer; writes nothing, prints medians over batches in microseconds:

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/bench/peers/torch_dtensor_dispatch.py          # one process, a fake process group of 2
    venv/bin/python tests/bench/peers/torch_dtensor_dispatch.py --gloo   # two processes over gloo, the second one idle
"""
import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

BATCHES, CALLS = 100, 500


def median_us(f):
    for _ in range(CALLS):
        f()
    times = []
    for _ in range(BATCHES):
        begin = time.perf_counter_ns()
        for _ in range(CALLS):
            f()
        times.append((time.perf_counter_ns() - begin) / CALLS / 1000)
    return statistics.median(times)


def measure(rank):
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    x, y = (distribute_tensor(torch.full((8,), 1.5), mesh, [Shard(0)]) for _ in range(2))
    if rank == 0:
        local, other = x.to_local(), y.to_local()
        with torch.no_grad():
            print(f"PyTorch {torch.__version__}")
            print(f"add of two Shard(0) tensors of 8 elements, cached: {median_us(lambda: x + y):.2f} us")
            print(f"of which the plain add of the local parts:         {median_us(lambda: local + other):.2f} us")
        x.requires_grad_()
        print(f"the same with autograd recording:                  {median_us(lambda: x + y):.2f} us")
    dist.barrier()
    dist.destroy_process_group()


def over_gloo(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    measure(rank)


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gloo", action="store_true", help="two processes over gloo instead of a fake group")
    if parser.parse_args().gloo:
        torch.multiprocessing.spawn(over_gloo, args=(free_port(),), nprocs=2)
    else:
        from torch.testing._internal.distributed.fake_pg import FakeStore
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        measure(0)
