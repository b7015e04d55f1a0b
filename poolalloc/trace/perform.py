"""Performs a recorded program: the same requests and frees through torch's own interface, without tensors or kernels.

Run as a script, `python perform.py run.npz`, under whatever allocator serves the process. Streams become streams of
this process and private pools MemPools. A block that other streams used is given back where the recording says that
they were done with it, so nothing depends on a device's speed. Not for figures: whoever runs it asks the allocator.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from poolalloc.trace.files import read
from poolalloc.trace.format import Op, Trace


def perform(trace: Trace) -> None:
    """Make every request of the trace. Raises torch.OutOfMemoryError where the allocator does."""
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]
    allocate, free = torch._C._cuda_cudaCachingAllocator_raw_alloc, torch._C._cuda_cudaCachingAllocator_raw_delete
    events = trace.events
    late = set(events["id"][events["op"] == Op.RECORD_STREAM].tolist())
    late |= set(events["id"][events["op"] == Op.FREE_COMPLETED].tolist())
    streams: dict[tuple[int, int], Any] = {}
    pools: dict[tuple[int, int], Any] = {}
    addresses: dict[int, int] = {}
    current = torch.cuda.current_device()

    def stream_of(device: int, number: int) -> int:
        if trace.streams[number] == 0:
            return 0
        if (device, number) not in streams:
            streams[device, number] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return int(streams[device, number].cuda_stream)

    columns = (events[name].tolist() for name in ("op", "device", "stream", "pool", "id", "requested"))
    for op, device, stream, pool, ident, requested in zip(*columns, strict=True):
        if op == Op.ALLOC:
            if device != current:
                torch.cuda.set_device(device)
                current = device
            if pool == 0:
                addresses[ident] = allocate(requested, stream_of(device, stream))
                continue
            if (device, pool) not in pools:
                pools[device, pool] = torch.cuda.MemPool()
            with torch.cuda.use_mem_pool(pools[device, pool], device):
                addresses[ident] = allocate(requested, stream_of(device, stream))
        elif op == Op.FREE_COMPLETED or (op == Op.FREE and ident not in late):
            free(addresses.pop(ident))
        elif op == Op.RELEASE_POOL:
            pools.pop((device, pool), None)


def devices_of(trace: Trace) -> int:
    """Return how many devices a machine needs to perform it."""
    return int(np.max(trace.events["device"])) + 1


if __name__ == "__main__":
    perform(read(sys.argv[1]))
