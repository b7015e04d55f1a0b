"""Streams, events, lag, launches, and processes that fork.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

import os
from ctypes import byref, c_int, c_void_p

import cuda_client as cu
from cases import case
from cuda_client import Cuda, ok

# --- events, streams, lag --------------------------------------------------------------------------------------------


@case()
def without_lag_everything_is_complete(cuda: Cuda) -> None:
    stream, event, other = cuda.stream(), cuda.event(), cuda.event()
    ok(cuda.query(event))
    ok(cuda.launch(stream, 3))
    ok(cuda.record(event, stream))
    ok(cuda.query(event))
    ok(cuda.rt.cudaStreamQuery(c_void_p(stream)))
    ok(cuda.record(other, stream))
    code, milliseconds = cuda.elapsed(event, other)
    assert code == cu.SUCCESS
    assert milliseconds > 0
    assert cuda.elapsed(event, cuda.event())[0] == cu.INVALID_HANDLE
    untimed = cuda.event(flags=2)
    ok(cuda.record(untimed, stream))
    assert cuda.elapsed(event, untimed)[0] == cu.INVALID_HANDLE
    assert cuda.report()["devices"][0]["launches"] == 3


@case(lag="4")
def an_event_completes_after_further_launches(cuda: Cuda) -> None:
    first, second = cuda.stream(), cuda.stream()
    event = cuda.event()
    ok(cuda.record(event, first))
    assert cuda.query(event) == cu.NOT_READY
    assert cuda.last_error() == cu.NOT_READY
    ok(cuda.launch(second, 3))
    assert cuda.query(event) == cu.NOT_READY
    ok(cuda.launch(first))
    ok(cuda.query(event))
    assert cuda.rt.cudaStreamQuery(c_void_p(first)) == cu.NOT_READY
    ok(cuda.record(event, first))
    assert cuda.query(event) == cu.NOT_READY


@case(lag="1000000", devices="2")
def a_synchronize_completes_what_lies_behind_it(cuda: Cuda) -> None:
    first, second = cuda.stream(), cuda.stream()
    early, late, elsewhere = cuda.event(), cuda.event(), cuda.event()
    ok(cuda.record(early, first))
    ok(cuda.record(elsewhere, second))
    ok(cuda.record(late, first))
    ok(cuda.sync_event(late))
    ok(cuda.query(early))
    assert cuda.query(elsewhere) == cu.NOT_READY
    ok(cuda.sync_stream(second))
    ok(cuda.query(elsewhere))
    ok(cuda.record(early, first))
    ok(cuda.record(elsewhere, second))
    ok(cuda.rt.cudaSetDevice(1))
    ok(cuda.rt.cudaDeviceSynchronize())
    assert cuda.query(early) == cu.NOT_READY
    ok(cuda.rt.cudaSetDevice(0))
    ok(cuda.rt.cudaDeviceSynchronize())
    ok(cuda.query(early))
    ok(cuda.query(elsewhere))


@case(lag="1000000")
def a_wait_carries_order_between_streams(cuda: Cuda) -> None:
    first, second = cuda.stream(), cuda.stream()
    event, unrelated = cuda.event(), cuda.event()
    ok(cuda.record(event, first))
    ok(cuda.wait(second, event))
    ok(cuda.record(unrelated, first))
    ok(cuda.sync_stream(second))
    ok(cuda.query(event))
    assert cuda.query(unrelated) == cu.NOT_READY


@case(lag="1000000")
def the_legacy_stream_waits_for_blocking_streams(cuda: Cuda) -> None:
    blocking, free = cuda.stream(flags=0), cuda.stream(flags=cu.NON_BLOCKING)
    on_blocking, on_free, on_legacy = cuda.event(), cuda.event(), cuda.event()
    ok(cuda.record(on_blocking, blocking))
    ok(cuda.record(on_free, free))
    ok(cuda.record(on_legacy, 0))
    ok(cuda.sync_event(on_legacy))
    ok(cuda.query(on_blocking))
    assert cuda.query(on_free) == cu.NOT_READY


@case(lag="1000000")
def a_free_waits_for_the_device(cuda: Cuda) -> None:
    event, address = cuda.event(), cuda.malloc(cu.PAGE)
    ok(cuda.record(event, cuda.stream()))
    assert cuda.query(event) == cu.NOT_READY
    ok(cuda.free(address))
    ok(cuda.query(event))


@case(lag="1000000", patience="0")
def polling_for_ever_ends(cuda: Cuda) -> None:
    event = cuda.event()
    ok(cuda.record(event, 0))
    while cuda.query(event) == cu.NOT_READY:
        pass
    ok(cuda.query(event))


@case()
def host_functions_run(cuda: Cuda) -> None:
    seen: list[int] = []
    function = cu.HOST_FUNCTION(lambda data: seen.append(data or 0))
    ok(cuda.rt.cudaLaunchHostFunc(c_void_p(cuda.stream()), function, c_void_p(5)))
    assert seen == [5]


@case()
def launches_are_checked(cuda: Cuda) -> None:
    assert cuda.launch(block=1025) == 9
    assert cuda.launch(block=0) == 9
    assert cuda.last_error() == 9
    ok(cuda.launch(block=1024))
    assert cuda.report()["devices"][0]["launches"] == 1


@case(memory=str(64 * cu.MIB))
def a_loop_that_waits_for_a_value_is_named_once(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    for _ in range(5000):
        cuda.launch()
        cuda.read(address, 4)


@case(memory=str(64 * cu.MIB))
def training_that_reads_its_loss_is_not_suspected(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    for _ in range(3000):
        cuda.launch(count=100)
        cuda.read(address, 4)


# --- fork and report -------------------------------------------------------------------------------------------------


@case(memory=str(64 * cu.MIB))
def a_child_of_a_used_device_cannot_use_it(cuda: Cuda) -> None:
    cuda.malloc(cu.PAGE)
    child = os.fork()
    if child == 0:
        os._exit(0 if cuda.try_malloc(cu.PAGE)[0] == cu.NOT_INITIALIZED else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cuda.used() == cu.PAGE


@case(memory=str(64 * cu.MIB))
def a_child_of_an_unused_device_has_its_own(cuda: Cuda) -> None:
    count = c_int()
    ok(cuda.rt.cudaGetDeviceCount(byref(count)))
    child = os.fork()
    if child == 0:
        os._exit(0 if cuda.try_malloc(cu.PAGE)[0] == cu.SUCCESS else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cuda.used() == 0
