"""Every rule whose breach the simulated device reports, broken once.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_void_p

import cuda_client as cu
from cases import breaks
from cuda_client import Cuda, ok


@breaks("double_free")
def free_twice(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    ok(cuda.free(address))
    assert cuda.free(address) == cu.INVALID_VALUE
    assert cuda.used() == 0


@breaks("free_unknown")
def free_the_middle(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    assert cuda.free(address + 512) == cu.INVALID_VALUE
    assert cuda.used() == cu.PAGE


@breaks("double_free")
def free_twice_into_a_pool(cuda: Cuda) -> None:
    cuda.malloc_async(512)
    address = cuda.malloc_async(512)
    ok(cuda.free_async(address))
    assert cuda.free_async(address) == cu.INVALID_VALUE


@breaks("double_free")
def free_host_twice(cuda: Cuda) -> None:
    pointer = c_void_p()
    ok(cuda.rt.cudaMallocHost(byref(pointer), c_size_t(100)))
    ok(cuda.rt.cudaFreeHost(pointer))
    assert cuda.rt.cudaFreeHost(pointer) == cu.INVALID_VALUE


@breaks("unregister_unknown")
def unregister_what_is_not_registered(cuda: Cuda) -> None:
    assert cuda.rt.cudaHostUnregister(ctypes.create_string_buffer(10)) == 713


@breaks("unmap_not_mapped")
def unmap_nothing(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    assert cuda.unmap(base, cu.PAGE) == cu.INVALID_VALUE


@breaks("unmap_not_mapped")
def unmap_a_part(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    cuda.mapped(base, 4 * cu.MIB)
    assert cuda.unmap(base, cu.PAGE) == cu.INVALID_VALUE
    ok(cuda.unmap(base, 4 * cu.MIB))


@breaks("unmap_not_mapped")
def unmap_over_a_gap(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    cuda.mapped(base, cu.PAGE)
    cuda.mapped(base + 2 * cu.PAGE, cu.PAGE)
    assert cuda.unmap(base, 3 * cu.PAGE) == cu.INVALID_VALUE
    assert cuda.used() == 2 * cu.PAGE


@breaks("map_over_live")
def map_over_a_mapping(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    cuda.mapped(base + cu.PAGE, cu.PAGE)
    handle = cuda.create(4 * cu.MIB)
    assert cuda.map(base, 4 * cu.MIB, handle) == cu.INVALID_VALUE


@breaks("map_outside_reservation")
def map_outside(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    handle = cuda.create(4 * cu.MIB)
    assert cuda.map(base + 6 * cu.MIB, 4 * cu.MIB, handle) == cu.INVALID_VALUE


@breaks("map_unknown_handle")
def map_a_released_handle(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    handle = cuda.create(cu.PAGE)
    ok(cuda.release(handle))
    assert cuda.map(base, cu.PAGE, handle) == cu.INVALID_VALUE


@breaks("release_unknown_handle")
def release_twice(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    handle = cuda.create(cu.PAGE)
    ok(cuda.release(handle))
    assert cuda.release(handle) == cu.INVALID_VALUE


@breaks("release_unknown_handle")
def release_an_invented_handle(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    assert cuda.release(12345) == cu.INVALID_VALUE


@breaks("set_access_unmapped")
def set_access_on_nothing(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    cuda.mapped(base, cu.PAGE)
    assert cuda.set_access(base, 2 * cu.PAGE) == cu.INVALID_VALUE


@breaks("address_free_mapped")
def free_addresses_under_a_mapping(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    cuda.mapped(base, cu.PAGE)
    assert cuda.address_free(base, 8 * cu.MIB) == cu.INVALID_VALUE
    ok(cuda.unmap(base, cu.PAGE))
    ok(cuda.address_free(base, 8 * cu.MIB))


@breaks("address_free_unknown")
def free_a_part_of_a_reservation(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    assert cuda.address_free(base, 4 * cu.MIB) == cu.INVALID_VALUE


@breaks("bad_address")
def copy_to_freed_memory(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    ok(cuda.free(address))
    assert cuda.try_write(address, b"late") == cu.INVALID_VALUE


@breaks("bad_address")
def copy_beyond_the_end(cuda: Cuda) -> None:
    address = cuda.malloc(1000)
    assert cuda.try_write(address + 998, b"long") == cu.INVALID_VALUE


@breaks("bad_address")
def copy_to_a_mapping_without_access(cuda: Cuda) -> None:
    ok(cuda.rt.cudaSetDevice(0))
    base = cuda.reserve(8 * cu.MIB)
    ok(cuda.map(base, cu.PAGE, cuda.create(cu.PAGE)))
    assert cuda.try_write(base, b"early") == cu.INVALID_VALUE
    ok(cuda.set_access(base, cu.PAGE))
    cuda.write(base, b"early")


@breaks("bad_address")
def copy_to_memory_no_device_reaches(cuda: Cuda) -> None:
    ok(cuda.rt.cudaSetDevice(0))
    plain = ctypes.create_string_buffer(8)
    assert cuda.rt.cudaMemset(plain, 0, c_size_t(8)) == cu.INVALID_VALUE


@breaks("use_after_destroy_event")
def record_a_destroyed_event(cuda: Cuda) -> None:
    event = cuda.event()
    ok(cuda.rt.cudaEventDestroy(c_void_p(event)))
    assert cuda.record(event) == cu.INVALID_HANDLE


@breaks("use_after_destroy_event")
def destroy_an_event_twice(cuda: Cuda) -> None:
    event = cuda.event()
    ok(cuda.rt.cudaEventDestroy(c_void_p(event)))
    for _ in range(3000):  # a slot is given out again late, and under another handle
        other = cuda.event()
        assert other != event
        ok(cuda.rt.cudaEventDestroy(c_void_p(other)))
    assert cuda.rt.cudaEventDestroy(c_void_p(event)) == cu.INVALID_HANDLE


@breaks("unknown_event")
def query_an_invented_event(cuda: Cuda) -> None:
    assert cuda.query(0x1234560) == cu.INVALID_HANDLE


@breaks("use_after_destroy_stream")
def launch_on_a_destroyed_stream(cuda: Cuda) -> None:
    stream = cuda.stream()
    ok(cuda.rt.cudaStreamDestroy(c_void_p(stream)))
    assert cuda.launch(stream) == cu.INVALID_HANDLE


@breaks("use_after_destroy_graph")
def launch_a_destroyed_graph(cuda: Cuda) -> None:
    stream = cuda.stream()
    ok(cuda.begin(stream))
    exec_ = cuda.instantiate(cuda.captured(stream))
    ok(cuda.rt.cudaGraphExecDestroy(c_void_p(exec_)))
    assert cuda.launch_graph(exec_) == cu.INVALID_VALUE
