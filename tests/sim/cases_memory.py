"""What memory costs on the simulated device: whole pages, handles, pools, several devices.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from ctypes import byref, c_int, c_size_t, c_uint64, c_ulonglong, c_void_p

import cuda_client as cu
from cases import CASES, case
from cuda_client import Cuda, ok

# --- accounting ------------------------------------------------------------------------------------------------------


@case(memory=str(64 * cu.MIB))
def malloc_takes_whole_pages(cuda: Cuda) -> None:
    one = cuda.malloc(1)
    many = cuda.malloc(cu.PAGE + 1)
    assert one != many
    assert cuda.used() == 3 * cu.PAGE
    assert cuda.mem_info() == (64 * cu.MIB - 3 * cu.PAGE, 64 * cu.MIB)
    ok(cuda.free(many))
    assert cuda.used() == cu.PAGE
    assert cuda.peak() == 3 * cu.PAGE
    cuda.rt.simgpu_reset_peak(0)
    assert cuda.peak() == cu.PAGE
    ok(cuda.free(one))
    ok(cuda.free(0))
    assert cuda.used() == 0
    assert (cuda.calls("cudaMalloc"), cuda.calls("cudaFree"), cuda.calls("cuMemMap")) == (2, 3, 0)


@case(memory=str(10 * cu.MIB))
def over_capacity_fails_and_takes_nothing(cuda: Cuda) -> None:
    kept = cuda.malloc(6 * cu.MIB)
    assert cuda.try_malloc(4 * cu.MIB + 1) == (cu.OUT_OF_MEMORY, 0)
    assert cuda.rt.cudaPeekAtLastError() == cu.OUT_OF_MEMORY
    assert cuda.last_error() == cu.OUT_OF_MEMORY
    assert cuda.last_error() == cu.SUCCESS
    assert cuda.error_name(cu.OUT_OF_MEMORY) == "cudaErrorMemoryAllocation"
    assert cuda.mem_info() == (4 * cu.MIB, 10 * cu.MIB)
    assert cuda.try_malloc(1 << 62)[0] == cu.OUT_OF_MEMORY
    cuda.malloc(4 * cu.MIB)
    assert cuda.mem_info()[0] == 0
    ok(cuda.cuInit(0))
    assert cuda.try_create(cu.PAGE)[0] == cu.OUT_OF_MEMORY
    ok(cuda.free(kept))
    assert cuda.try_create(cu.PAGE)[0] == cu.SUCCESS
    assert cuda.violations() == {}


@case(memory=str(64 * cu.MIB))
def a_handle_counts_until_released_and_unmapped(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(32 * cu.MIB)
    assert base % cu.PAGE == 0
    assert cuda.used() == 0
    handle = cuda.create(4 * cu.MIB)
    assert cuda.used() == 4 * cu.MIB
    ok(cuda.map(base, 4 * cu.MIB, handle))
    ok(cuda.map(base + 8 * cu.MIB, 4 * cu.MIB, handle))
    assert cuda.used() == 4 * cu.MIB
    ok(cuda.release(handle))
    assert cuda.used() == 4 * cu.MIB
    ok(cuda.unmap(base, 4 * cu.MIB))
    assert cuda.used() == 4 * cu.MIB
    ok(cuda.unmap(base + 8 * cu.MIB, 4 * cu.MIB))
    assert cuda.used() == 0
    handle = cuda.mapped(base, cu.PAGE)
    ok(cuda.unmap(base, cu.PAGE))
    assert cuda.used() == cu.PAGE
    ok(cuda.release(handle))
    assert cuda.used() == 0
    ok(cuda.address_free(base, 32 * cu.MIB))
    assert cuda.violations() == {}


@case(memory=str(64 * cu.MIB))
def addresses_are_aligned_to_pages_and_no_further(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(3 * cu.PAGE, alignment=cu.PAGE)
    assert base % cu.PAGE == 0
    ok(cuda.address_free(base, 3 * cu.PAGE))
    wide = (byref(c_uint64()), c_size_t(cu.PAGE), c_size_t(4096 * cu.MIB), c_uint64(0), c_ulonglong(0))
    assert cuda.cuMemAddressReserve(*wide) == cu.NOT_SUPPORTED


@case(memory=str(64 * cu.MIB))
def several_mappings_unmap_together(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(8 * cu.MIB)
    for page in range(4):
        handle = cuda.create(cu.PAGE)
        ok(cuda.map(base + page * cu.PAGE, cu.PAGE, handle))
        ok(cuda.release(handle))
    ok(cuda.set_access(base, 8 * cu.MIB))
    ok(cuda.unmap(base + cu.PAGE, 2 * cu.PAGE))
    assert cuda.used() == 2 * cu.PAGE
    assert cuda.violations() == {}


@case(memory=str(64 * cu.MIB))
def work_is_counted_by_handles_and_their_pages(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(32 * cu.PAGE)
    five, one = cuda.create(5 * cu.PAGE), cuda.create(cu.PAGE)
    ok(cuda.map(base, 5 * cu.PAGE, five))
    ok(cuda.map(base + 5 * cu.PAGE, cu.PAGE, one))
    ok(cuda.map(base + 10 * cu.PAGE, 5 * cu.PAGE, five))
    ok(cuda.set_access(base, 6 * cu.PAGE))
    ok(cuda.unmap(base, 6 * cu.PAGE))
    ok(cuda.release(five))
    ok(cuda.free(cuda.malloc(3 * cu.PAGE - 1)))
    assert cuda.try_malloc(128 * cu.MIB)[0] != 0  # what fails is no work
    assert cuda.report()["driver_work"] == {
        "reserve": 1,
        "create": 2,
        "create_pages": 6,
        "destroy": 1,
        "destroy_pages": 5,
        "map": 3,
        "map_pages": 11,
        "allow_access": 2,
        "allow_access_pages": 6,
        "unmap": 2,
        "unmap_pages": 6,
        "allocate_segment": 1,
        "allocate_segment_pages": 3,
        "free_segment": 1,
        "free_segment_pages": 3,
    }


@case(memory=str(64 * cu.MIB), driver_costs="create=3000:0.5,map=1000:0,allocate_segment=2000:0")
def work_takes_its_price_one_after_the_other(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    begin = time.monotonic()
    handle = cuda.create(5 * cu.PAGE)  # 3 ms x (1 + 0.5 x 4)
    ok(cuda.map(cuda.reserve(5 * cu.PAGE), 5 * cu.PAGE, handle))
    ok(cuda.free(cuda.malloc(1)))
    assert cuda.report()["driver_seconds"] == 0.012
    threads = [threading.Thread(target=cuda.malloc, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.report()["driver_seconds"] == 0.02
    assert time.monotonic() - begin >= 0.02, "no two take their time at once"


@case(memory=str(64 * cu.MIB))
def a_retained_handle_is_released_once_more(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    base = cuda.reserve(cu.PAGE)
    handle = cuda.mapped(base, cu.PAGE)
    again = c_uint64()
    ok(cuda.cuMemRetainAllocationHandle(byref(again), c_void_p(base)))
    assert again.value == handle
    ok(cuda.release(handle))
    ok(cuda.release(handle))
    ok(cuda.cuMemRetainAllocationHandle(byref(again), c_void_p(base)))
    assert again.value != handle
    ok(cuda.unmap(base, cu.PAGE))
    assert cuda.used() == cu.PAGE
    ok(cuda.release(again.value))
    assert cuda.used() == 0


@case(memory=str(64 * cu.MIB))
def an_exported_allocation_is_imported_as_itself(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    handle = cuda.create(cu.PAGE, handle_types=1)
    file = c_int()
    ok(cuda.cuMemExportToShareableHandle(byref(file), c_uint64(handle), 1, c_ulonglong(0)))
    same = c_uint64()
    ok(cuda.cuMemImportFromShareableHandle(byref(same), c_void_p(file.value), 1))
    os.close(file.value)
    assert same.value == handle
    assert cuda.used() == cu.PAGE
    assert (
        cuda.cuMemExportToShareableHandle(byref(file), c_uint64(cuda.create(cu.PAGE)), 1, c_ulonglong(0)) != cu.SUCCESS
    )


@case(memory=str(256 * cu.MIB), devices="2")
def devices_are_apart(cuda: Cuda) -> None:
    count = c_int()
    ok(cuda.rt.cudaGetDeviceCount(byref(count)))
    assert count.value == 2
    ok(cuda.rt.cudaSetDevice(1))
    address = cuda.malloc(cu.PAGE)
    assert (cuda.used(0), cuda.used(1)) == (0, cu.PAGE)
    assert cuda.rt.cudaSetDevice(2) == cu.INVALID_DEVICE
    can = c_int()
    ok(cuda.rt.cudaDeviceCanAccessPeer(byref(can), 0, 1))
    assert can.value == 1
    ok(cuda.rt.cudaSetDevice(0))
    ok(cuda.rt.cudaDeviceEnablePeerAccess(1, 0))
    assert cuda.rt.cudaDeviceEnablePeerAccess(1, 0) == 704
    ok(cuda.free(address))
    handle = cuda.create(cu.PAGE, device=1)
    assert (cuda.used(0), cuda.used(1)) == (0, cu.PAGE)
    ok(cuda.release(handle))
    assert cuda.capacity(0) == cuda.capacity(1) == 256 * cu.MIB
    assert cuda.capacity(2) == 0


@case(devices="3", peers="0-1,1-2")
def not_every_device_reaches_every_other(cuda: Cuda) -> None:
    can = c_int()
    reached = []
    for device, peer in ((0, 1), (1, 0), (1, 2), (0, 2), (2, 0)):
        ok(cuda.rt.cudaDeviceCanAccessPeer(byref(can), device, peer))
        reached.append(can.value)
    assert reached == [1, 1, 1, 0, 0]
    ok(cuda.rt.cudaSetDevice(0))
    ok(cuda.rt.cudaDeviceEnablePeerAccess(1, 0))
    assert cuda.rt.cudaDeviceEnablePeerAccess(2, 0) == 217
    address = cuda.reserve(cu.PAGE)
    cuda.mapped(address, cu.PAGE)
    ok(cuda.set_access(address, cu.PAGE, device=1))
    assert cuda.set_access(address, cu.PAGE, device=2) == cu.INVALID_DEVICE


@case(vmm_fault="access")
def mappings_may_be_refused_although_they_are_announced(cuda: Cuda) -> None:
    ok(cuda.free(cuda.malloc(cu.PAGE)))
    address = cuda.reserve(cu.PAGE)
    ok(cuda.map(address, cu.PAGE, cuda.create(cu.PAGE)))
    assert cuda.set_access(address, cu.PAGE) == 999


@case(memory=str(512 * cu.MIB), devices="3")
def visible_devices_are_a_choice_of_all(cuda: Cuda) -> None:
    count = c_int()
    ok(cuda.rt.cudaGetDeviceCount(byref(count)))
    assert count.value == 2
    bus = ctypes.create_string_buffer(32)
    names = []
    for device in range(2):
        ok(cuda.rt.cudaDeviceGetPCIBusId(bus, 32, device))
        names.append(bus.value)
    assert names == [b"0000:1c:00.0", b"0000:1a:00.0"]


CASES["visible_devices_are_a_choice_of_all"][1]["CUDA_VISIBLE_DEVICES"] = "2,0,7,1"


@case(memory=str(1024 * cu.MIB))
def threads_keep_the_count_exact(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        live: list[int] = []
        try:
            base = cuda.reserve(16 * cu.MIB)
            for _ in range(300):
                if live and chance.random() < 0.5:
                    ok(cuda.free(live.pop(chance.randrange(len(live)))))
                else:
                    live.append(cuda.malloc(chance.randrange(1, 3 * cu.MIB)))
                handle = cuda.mapped(base, 4 * cu.MIB)
                ok(cuda.unmap(base, 4 * cu.MIB))
                ok(cuda.release(handle))
                if len(live) > 8:
                    ok(cuda.free(live.pop()))
            for address in live:
                ok(cuda.free(address))
            ok(cuda.address_free(base, 16 * cu.MIB))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert cuda.used() == 0
    assert cuda.violations() == {}


# --- stream-ordered pools --------------------------------------------------------------------------------------------

RELEASE_THRESHOLD, RESERVED, RESERVED_HIGH, USED, USED_HIGH = 4, 5, 6, 7, 8


@case(memory=str(256 * cu.MIB))
def a_pool_holds_what_it_took_until_a_synchronize(cuda: Cuda) -> None:
    small = [cuda.malloc_async(1000) for _ in range(10)]
    assert len(set(small)) == 10
    held = cuda.used()
    assert 0 < held == cuda.pool_attribute(RESERVED)
    assert cuda.pool_attribute(USED) == 10 * 1024
    for address in small:
        ok(cuda.free_async(address))
    assert cuda.pool_attribute(USED) == 0
    assert cuda.pool_attribute(USED_HIGH) == 10 * 1024
    assert cuda.used() == held
    ok(cuda.sync_stream())
    assert cuda.used() == cuda.pool_attribute(RESERVED) == 0
    assert cuda.pool_attribute(RESERVED_HIGH) == held
    ok(cuda.set_pool_attribute(RESERVED_HIGH, 0))
    assert cuda.pool_attribute(RESERVED_HIGH) == 0
    assert cuda.set_pool_attribute(USED_HIGH, 7) == cu.INVALID_VALUE


@case(memory=str(256 * cu.MIB))
def a_threshold_keeps_memory_in_the_pool(cuda: Cuda) -> None:
    ok(cuda.set_pool_attribute(RELEASE_THRESHOLD, 64 * cu.MIB))
    address = cuda.malloc_async(20 * cu.MIB)
    held = cuda.used()
    ok(cuda.free_async(address))
    ok(cuda.sync_stream())
    assert cuda.used() == held
    assert cuda.malloc_async(20 * cu.MIB) == address
    ok(cuda.free_async(address))
    # What is idle in a pool goes to whoever needs it.
    everything = cuda.malloc(256 * cu.MIB)
    assert cuda.used() == 256 * cu.MIB
    ok(cuda.free(everything))
    ok(cuda.rt.cudaMemPoolTrimTo(cuda.default_pool(), c_size_t(0)))
    assert cuda.used() == 0


@case(memory=str(64 * cu.MIB))
def a_pool_fails_when_the_device_is_full(cuda: Cuda) -> None:
    cuda.malloc(60 * cu.MIB)
    address = cuda.malloc_async(3 * cu.MIB)
    assert cuda.used() == 64 * cu.MIB
    pointer = c_void_p()
    assert cuda.rt.cudaMallocAsync(byref(pointer), c_size_t(2 * cu.MIB), None) == cu.OUT_OF_MEMORY
    ok(cuda.free(address))


@case(memory=str(512 * cu.MIB))
def a_pool_never_overlaps(cuda: Cuda) -> None:
    chance = random.Random(7)
    live: dict[int, int] = {}
    for _ in range(2000):
        if live and chance.random() < 0.5:
            address = chance.choice(list(live))
            del live[address]
            ok(cuda.free_async(address))
        else:
            size = chance.randrange(1, 200_000)
            address = cuda.malloc_async(size)
            assert all(address >= other + length or other >= address + size for other, length in live.items())
            live[address] = size
    rounded = sum((size + 511) // 512 * 512 for size in live.values())
    assert cuda.pool_attribute(USED) == rounded
    for address in live:
        ok(cuda.free_async(address))
    ok(cuda.rt.cudaDeviceSynchronize())
    assert cuda.used() == 0
    assert cuda.violations() == {}
