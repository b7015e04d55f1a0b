"""Performs a recorded program: the same requests and frees through torch's own interface, without tensors or kernels.

Run as a script, `python perform.py run.npz`, under whatever allocator serves the process; with a second file, it
watches as that asks (observe.py) and leaves what it saw there. Streams become streams of
this process and private pools MemPools. A block that other streams used is given back where the recording says that
they were done with it, so nothing depends on a device's speed. Not for figures: whoever runs it asks the allocator.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from poolalloc._internal.trace.files import read
from poolalloc._internal.trace.format import Op, Trace
from poolalloc.analysis.trace.observe import Observer


def perform(trace: Trace, observer: Observer | None = None) -> None:
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

    placements = None if observer is None else observer.placements
    point = -1 if observer is None else observer.next_point
    columns = (events[name].tolist() for name in ("op", "device", "stream", "pool", "id", "requested"))
    number = 0
    started = time.perf_counter()
    try:
        for number, (op, device, stream, pool, ident, requested) in enumerate(zip(*columns, strict=True)):
            if op == Op.ALLOC:
                if device != current:
                    torch.cuda.set_device(device)
                    current = device
                if pool == 0:
                    addresses[ident] = allocate(requested, stream_of(device, stream))
                else:
                    if (device, pool) not in pools:
                        pools[device, pool] = torch.cuda.MemPool()
                    with torch.cuda.use_mem_pool(pools[device, pool], device):
                        addresses[ident] = allocate(requested, stream_of(device, stream))
                if placements is not None:
                    placements.append(addresses[ident])
            elif op == Op.FREE_COMPLETED or (op == Op.FREE and ident not in late):
                free(addresses.pop(ident))
            elif op == Op.RELEASE_POOL:
                pools.pop((device, pool), None)
            if number == point:
                assert observer is not None
                observer.sample()
                point = observer.next_point

        number = len(events)
    finally:
        if observer is not None:
            observer.done = number
            observer.seconds += time.perf_counter() - started


def devices_of(trace: Trace) -> int:
    """Return how many devices a machine needs to perform it."""
    return int(np.max(trace.events["device"])) + 1


def main() -> None:
    """Perform the trace named on the command line, watched if a second file says how: JSON, replaced by what is seen.

    It asks for `points`, numbers of events, and `placements`, true or false.
    """
    trace = read(sys.argv[1])
    if len(sys.argv) == 2:
        perform(trace)
        return
    watched = Path(sys.argv[2])
    asked = json.loads(watched.read_text(encoding="utf-8"))
    observer = Observer(asked["points"], devices_of(trace), placements=asked["placements"])
    try:
        perform(trace, observer)
    finally:
        observer.write(watched)


if __name__ == "__main__":
    main()
