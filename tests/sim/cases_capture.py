"""Stream capture and graphs.

Cases for test_runtime.py; cases.py runs them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import cuda_client as cu
from cases import case
from cuda_client import Cuda, ok


@case(memory=str(64 * cu.MIB))
def a_capture_becomes_a_graph(cuda: Cuda) -> None:
    stream = cuda.stream()
    address = cuda.malloc(cu.PAGE)
    assert cuda.status(stream) == cu.NONE
    ok(cuda.begin(stream))
    assert cuda.status(stream) == cu.ACTIVE
    assert cuda.begin(stream) == cu.ILLEGAL_STATE
    ok(cuda.launch(stream, 5))
    ok(cuda.rt.cudaMemsetAsync(c_void_p(address), 7, c_size_t(4), c_void_p(stream)))
    seen: list[int] = []
    function = cu.HOST_FUNCTION(lambda data: seen.append(data or 0))
    ok(cuda.rt.cudaLaunchHostFunc(c_void_p(stream), function, c_void_p(9)))
    assert seen == []
    graph = cuda.captured(stream)
    assert cuda.status(stream) == cu.NONE
    assert cuda.node_count(graph) == 7
    assert cuda.read(address, 4) == bytes(4)
    assert cuda.report()["devices"][0]["launches"] == 0
    exec_ = cuda.instantiate(graph)
    ok(cuda.rt.cudaGraphDestroy(c_void_p(graph)))
    for _ in range(3):
        ok(cuda.launch_graph(exec_, stream))
    assert cuda.report()["devices"][0]["launches"] == 15
    assert cuda.read(address, 4) == b"\7" * 4
    assert seen == [9, 9, 9]
    ok(cuda.rt.cudaGraphExecDestroy(c_void_p(exec_)))


@case(memory=str(64 * cu.MIB))
def a_malloc_breaks_a_global_capture(cuda: Cuda) -> None:
    stream = cuda.stream()
    ok(cuda.begin(stream))
    assert cuda.try_malloc(cu.PAGE) == (cu.CAPTURE_UNSUPPORTED, 0)
    assert cuda.used() == 0
    assert cuda.status(stream) == cu.INVALIDATED
    assert cuda.launch(stream) == cu.CAPTURE_INVALIDATED
    assert cuda.end(stream) == (cu.CAPTURE_INVALIDATED, 0)
    assert cuda.status(stream) == cu.NONE
    cuda.malloc(cu.PAGE)


@case(memory=str(64 * cu.MIB), devices="2")
def no_mode_lets_a_device_be_waited_for_during_a_capture(cuda: Cuda) -> None:
    ok(cuda.cuInit(0))
    stream = cuda.stream()
    for synchronize in (cuda.rt.cudaDeviceSynchronize, cuda.cuCtxSynchronize):
        ok(cuda.begin(stream, cu.RELAXED))
        ok(cuda.rt.cudaSetDevice(1))
        ok(synchronize())
        ok(cuda.rt.cudaSetDevice(0))
        assert synchronize() == cu.CAPTURE_UNSUPPORTED
        assert cuda.status(stream) == cu.INVALIDATED
        assert cuda.end(stream) == (cu.CAPTURE_INVALIDATED, 0)
        ok(synchronize())


@case(memory=str(64 * cu.MIB))
def modes_decide_what_a_capture_forbids(cuda: Cuda) -> None:
    stream = cuda.stream()
    ok(cuda.begin(stream, cu.RELAXED))
    address = cuda.malloc(cu.PAGE)
    ok(cuda.end(stream)[0])

    ok(cuda.begin(stream))
    mode = c_int(cu.RELAXED)
    ok(cuda.rt.cudaThreadExchangeStreamCaptureMode(byref(mode)))
    ok(cuda.free(address))
    ok(cuda.rt.cudaThreadExchangeStreamCaptureMode(byref(mode)))
    assert mode.value == cu.RELAXED
    ok(cuda.end(stream)[0])

    def elsewhere() -> list[int]:
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(cuda.try_malloc(cu.PAGE)[0]))
        thread.start()
        thread.join()
        return codes

    ok(cuda.begin(stream, cu.THREAD_LOCAL))
    assert elsewhere() == [cu.SUCCESS]
    assert cuda.status(stream) == cu.ACTIVE
    ok(cuda.end(stream)[0])
    ok(cuda.begin(stream))
    assert elsewhere() == [cu.CAPTURE_UNSUPPORTED]
    assert cuda.end(stream)[0] == cu.CAPTURE_INVALIDATED


@case()
def queries_and_waits_break_a_capture(cuda: Cuda) -> None:
    stream, event = cuda.stream(), cuda.event()
    ok(cuda.record(event, stream))
    broken: list[tuple[str, Callable[[], int], int]] = [
        ("query of an event", lambda: cuda.query(event), cu.CAPTURE_UNSUPPORTED),
        ("wait for an event", lambda: cuda.sync_event(event), cu.CAPTURE_UNSUPPORTED),
        ("query of the stream", lambda: cuda.rt.cudaStreamQuery(c_void_p(stream)), cu.CAPTURE_UNSUPPORTED),
        ("wait for the stream", lambda: cuda.sync_stream(stream), cu.CAPTURE_UNSUPPORTED),
        ("wait for the device", cuda.rt.cudaDeviceSynchronize, cu.CAPTURE_UNSUPPORTED),
        ("wait for uncaptured work", lambda: cuda.wait(stream, event), cu.CAPTURE_ISOLATION),
    ]
    for what, call, code in broken:
        ok(cuda.begin(stream))
        assert call() == code, what
        assert cuda.end(stream) == (cu.CAPTURE_INVALIDATED, 0), what
    ok(cuda.query(event))


@case()
def a_captured_event_cannot_be_asked(cuda: Cuda) -> None:
    stream, event = cuda.stream(), cuda.event()
    ok(cuda.begin(stream, cu.RELAXED))
    ok(cuda.record(event, stream))
    assert cuda.query(event) == cu.CAPTURED_EVENT
    assert cuda.end(stream)[0] == cu.CAPTURE_INVALIDATED
    assert cuda.query(event) == cu.CAPTURED_EVENT
    ok(cuda.record(event, stream))
    ok(cuda.query(event))


@case()
def a_capture_ends_where_it_began(cuda: Cuda) -> None:
    stream, other = cuda.stream(), cuda.stream()
    assert cuda.begin(0) == cu.CAPTURE_UNSUPPORTED
    assert cuda.end(stream)[0] == cu.ILLEGAL_STATE
    ok(cuda.begin(stream))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cuda.end(stream)[0]))
    thread.start()
    thread.join()
    assert codes == [cu.CAPTURE_WRONG_THREAD]
    event = cuda.event()
    ok(cuda.record(event, stream))
    ok(cuda.wait(other, event))
    assert cuda.status(other) == cu.ACTIVE
    assert cuda.end(other)[0] == cu.CAPTURE_UNMATCHED
    assert cuda.end(stream)[0] == cu.CAPTURE_INVALIDATED
    assert cuda.status(other) == cu.NONE


@case()
def forks_must_join(cuda: Cuda) -> None:
    main, side = cuda.stream(), cuda.stream()
    fork, join = cuda.event(), cuda.event()

    def forked() -> None:
        ok(cuda.begin(main))
        ok(cuda.launch(main))
        ok(cuda.record(fork, main))
        ok(cuda.wait(side, fork))
        ok(cuda.launch(side))

    forked()
    assert cuda.end(main) == (cu.CAPTURE_UNJOINED, 0)
    forked()
    ok(cuda.record(join, side))
    ok(cuda.wait(main, join))
    ok(cuda.launch(main))
    graph = cuda.captured(main)
    assert cuda.node_count(graph) == 3
    roots = c_size_t()
    ok(cuda.rt.cudaGraphGetRootNodes(c_void_p(graph), None, byref(roots)))
    assert roots.value == 1
    assert cuda.status(side) == cu.NONE
    ok(cuda.launch(side))


@case()
def two_captures_do_not_merge(cuda: Cuda) -> None:
    first, second = cuda.stream(), cuda.stream()
    event = cuda.event()
    ok(cuda.begin(first, cu.RELAXED))
    ok(cuda.begin(second, cu.RELAXED))
    ok(cuda.record(event, first))
    assert cuda.wait(second, event) == cu.CAPTURE_MERGE
    assert cuda.end(first)[0] == cu.CAPTURE_INVALIDATED
    assert cuda.end(second)[0] == cu.CAPTURE_INVALIDATED


@case(memory=str(64 * cu.MIB))
def the_legacy_stream_cuts_through_a_blocking_capture(cuda: Cuda) -> None:
    address = cuda.malloc(cu.PAGE)
    blocking, free = cuda.stream(flags=0), cuda.stream(flags=cu.NON_BLOCKING)
    ok(cuda.begin(free, cu.RELAXED))
    ok(cuda.launch(0))
    ok(cuda.end(free)[0])
    ok(cuda.begin(blocking, cu.RELAXED))
    status = c_int()
    assert cuda.rt.cudaStreamIsCapturing(None, byref(status)) == cu.CAPTURE_IMPLICIT
    assert cuda.status(blocking) == cu.ACTIVE
    assert cuda.launch(0) == cu.CAPTURE_IMPLICIT
    assert cuda.end(blocking)[0] == cu.CAPTURE_INVALIDATED
    ok(cuda.begin(blocking, cu.RELAXED))
    assert cuda.try_write(address, b"x") == cu.CAPTURE_IMPLICIT
    assert cuda.end(blocking)[0] == cu.CAPTURE_INVALIDATED


@case(memory=str(128 * cu.MIB))
def memory_of_a_graph_lives_with_it(cuda: Cuda) -> None:
    stream = cuda.stream()
    ok(cuda.begin(stream))
    address = cuda.malloc_async(3 * cu.MIB, stream)
    ok(cuda.launch(stream))
    ok(cuda.free_async(address, stream))
    graph = cuda.captured(stream)
    used = c_uint64()
    ok(cuda.rt.cudaDeviceGetGraphMemAttribute(0, 0, byref(used)))
    assert used.value == 3 * cu.MIB
    exec_ = cuda.instantiate(graph)
    ok(cuda.rt.cudaGraphDestroy(c_void_p(graph)))
    ok(cuda.launch_graph(exec_, stream))
    ok(cuda.launch_graph(exec_, stream))
    ok(cuda.sync_stream(stream))
    assert cuda.used() > 0
    ok(cuda.rt.cudaGraphExecDestroy(c_void_p(exec_)))
    ok(cuda.sync_stream(stream))
    assert cuda.used() == 0
    assert cuda.violations() == {}


@case()
def a_graph_keeps_objects_alive(cuda: Cuda) -> None:
    gone: list[int] = []
    destroy = cu.HOST_FUNCTION(lambda data: gone.append(data or 0))
    stream, thing = cuda.stream(), c_void_p()
    ok(cuda.rt.cudaUserObjectCreate(byref(thing), c_void_p(11), destroy, 1, 1))
    ok(cuda.begin(stream))
    ok(cuda.launch(stream))
    graph = cuda.captured(stream)
    ok(cuda.rt.cudaGraphRetainUserObject(c_void_p(graph), thing, 1, 1))
    exec_ = cuda.instantiate(graph)
    ok(cuda.rt.cudaGraphDestroy(c_void_p(graph)))
    assert gone == []
    ok(cuda.rt.cudaGraphExecDestroy(c_void_p(exec_)))
    assert gone == [11]


@case(memory=str(64 * cu.MIB))
def copies_of_a_graph_read_when_it_runs(cuda: Cuda) -> None:
    stream = cuda.stream()
    address = cuda.malloc(cu.PAGE)
    source = ctypes.create_string_buffer(b"before", 8)
    ok(cuda.begin(stream))
    ok(cuda.rt.cudaMemcpyAsync(c_void_p(address), source, c_size_t(6), cu.ANYWHERE, c_void_p(stream)))
    exec_ = cuda.instantiate(cuda.captured(stream))
    source.value = b"later!"
    ok(cuda.launch_graph(exec_, stream))
    assert cuda.read(address, 6) == b"later!"
