"""Who uses memory that other work may still use: what is ordered is silent, what is not is named.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

from ctypes import c_int, c_size_t, c_void_p

import cuda_client as cu
from cases import CASES, breaks, case
from cuda_client import Cuda, ok

SIZE = 1000


def fill(cuda: Cuda, address: int, stream: int) -> None:
    ok(cuda.rt.cudaMemsetAsync(c_void_p(address), c_int(1), c_size_t(SIZE), c_void_p(stream)))


def copy(cuda: Cuda, to: int, start: int, stream: int) -> None:
    ok(cuda.rt.cudaMemcpyAsync(c_void_p(to), c_void_p(start), c_size_t(SIZE), cu.ON_DEVICE, c_void_p(stream)))


@case(lag="1000000", memory=str(64 * cu.MIB), devices="2")
def memory_in_turn_is_nobodys_fault(cuda: Cuda) -> None:
    first, second, event = cuda.stream(), cuda.stream(), cuda.event()
    here, there = cuda.malloc(cu.PAGE), cuda.malloc(cu.PAGE)
    fill(cuda, here, first)
    fill(cuda, here, first)
    fill(cuda, here + SIZE, second)  # beside it
    ok(cuda.record(event, first))
    ok(cuda.wait(second, event))
    fill(cuda, here, second)
    ok(cuda.sync_stream(second))
    copy(cuda, there, here, first)
    copy(cuda, there + SIZE, here, second)  # two that read
    ok(cuda.record(event, second))
    ok(cuda.rt.cudaSetDevice(1))
    elsewhere = cuda.stream()
    ok(cuda.wait(elsewhere, event))
    fill(cuda, there + SIZE, elsewhere)
    assert cuda.violations() == {}


@breaks("use_too_early")
def write_what_another_stream_writes(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    fill(cuda, address, cuda.stream())
    fill(cuda, address + SIZE - 1, cuda.stream())


@breaks("use_too_early")
def write_what_another_device_reads(cuda: Cuda) -> None:
    address, other = cuda.malloc(cu.PAGE), cuda.malloc(cu.PAGE)
    ok(cuda.rt.cudaSetDevice(1))
    copy(cuda, other, address, cuda.stream())
    ok(cuda.rt.cudaSetDevice(0))
    ok(cuda.rt.cudaDeviceSynchronize())  # the wrong device
    fill(cuda, address, cuda.stream())


@breaks("use_too_early")
def read_through_another_mapping_what_is_being_written(cuda: Cuda) -> None:
    ok(cuda.rt.cudaSetDevice(0))
    base, target = cuda.reserve(2 * cu.PAGE), cuda.malloc(cu.PAGE)
    handle = cuda.mapped(base, cu.PAGE)
    ok(cuda.map(base + cu.PAGE, cu.PAGE, handle))
    ok(cuda.set_access(base + cu.PAGE, cu.PAGE))
    fill(cuda, base, cuda.stream())
    copy(cuda, target, base + cu.PAGE, cuda.stream())


for _function, _environment in list(CASES.values()):
    if _function.__module__ == __name__:
        _environment |= {"POOLALLOC_SIM_LAG": "1000000", "POOLALLOC_SIM_DEVICES": "2"}
