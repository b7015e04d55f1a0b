"""CUDA through ctypes, for cases_*.py: the runtime from libsimgpu.so, the driver as poolalloc's own driver finds it
(libcuda.so.1 opened by name, everything else by cuGetProcAddress), and the simulator's own figures.

Calls return CUDA's error code; `ok` turns anything but success into an AssertionError.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from poolalloc import sim

MIB = 1 << 20
PAGE = 2 * MIB

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
ILLEGAL_STATE = 401
NOT_READY = 600
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_MERGE = 902
CAPTURE_UNMATCHED = 903
CAPTURE_UNJOINED = 904
CAPTURE_ISOLATION = 905
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NONE, ACTIVE, INVALIDATED = 0, 1, 2
NON_BLOCKING = 1
TO_DEVICE, TO_HOST, ON_DEVICE, ANYWHERE = 1, 2, 3, 4
CUDA_VERSION = 12_000

HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)


class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class AllocationProp(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class AccessDesc(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", c_int))


class Dim3(ctypes.Structure):
    _fields_ = (("x", c_uint), ("y", c_uint), ("z", c_uint))


class IpcHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 64),)


def ok(code: int) -> None:
    assert code == SUCCESS, f"CUDA error {code}"


class Cuda:
    """One process's view of the simulated machine."""

    def __init__(self) -> None:
        folder = sim.library_folder()
        self.rt = ctypes.CDLL(str(folder / "libsimgpu.so"))
        for name in ("simgpu_used_bytes", "simgpu_peak_used_bytes", "simgpu_capacity_bytes", "simgpu_calls"):
            getattr(self.rt, name).restype = c_uint64
        self.rt.simgpu_violations.restype = c_uint64
        self._libcuda = ctypes.CDLL(str(folder / "libcuda.so.1"))
        self._functions: dict[str, Any] = {}

    # --- the driver ---
    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        if name not in self._functions:
            pointer, status = c_void_p(), c_int()
            ok(
                self._libcuda.cuGetProcAddress_v2(
                    name.encode(), byref(pointer), CUDA_VERSION, c_uint64(0), byref(status)
                )
            )
            assert pointer.value, name
            self._functions[name] = ctypes.CFUNCTYPE(c_int)(pointer.value)
            self._functions[name].argtypes = None
        return self._functions[name]

    # --- the simulator ---
    def used(self, device: int = 0) -> int:
        return int(self.rt.simgpu_used_bytes(device))

    def peak(self, device: int = 0) -> int:
        return int(self.rt.simgpu_peak_used_bytes(device))

    def capacity(self, device: int = 0) -> int:
        return int(self.rt.simgpu_capacity_bytes(device))

    def calls(self, name: str) -> int:
        return int(self.rt.simgpu_calls(name.encode()))

    def report(self) -> dict[str, Any]:
        size = self.rt.simgpu_report_json(None, 0) + 1
        buffer = ctypes.create_string_buffer(size)
        self.rt.simgpu_report_json(buffer, size)
        report: dict[str, Any] = json.loads(buffer.value)
        return report

    def violations(self) -> dict[str, int]:
        kinds: dict[str, int] = self.report()["violations"]
        assert sum(kinds.values()) == self.rt.simgpu_violations()
        return kinds

    # --- memory of the runtime ---
    def try_malloc(self, size: int) -> tuple[int, int]:
        pointer = c_void_p()
        code = self.rt.cudaMalloc(byref(pointer), c_size_t(size))
        return code, pointer.value or 0

    def malloc(self, size: int) -> int:
        code, address = self.try_malloc(size)
        ok(code)
        return address

    def free(self, address: int) -> int:
        return int(self.rt.cudaFree(c_void_p(address)))

    def malloc_async(self, size: int, stream: int = 0) -> int:
        pointer = c_void_p()
        ok(self.rt.cudaMallocAsync(byref(pointer), c_size_t(size), c_void_p(stream)))
        return pointer.value or 0

    def free_async(self, address: int, stream: int = 0) -> int:
        return int(self.rt.cudaFreeAsync(c_void_p(address), c_void_p(stream)))

    def default_pool(self) -> c_void_p:
        pool = c_void_p()
        ok(self.rt.cudaDeviceGetDefaultMemPool(byref(pool), 0))
        return pool

    def pool_attribute(self, attribute: int) -> int:
        value = c_uint64()
        ok(self.rt.cudaMemPoolGetAttribute(self.default_pool(), attribute, byref(value)))
        return value.value

    def set_pool_attribute(self, attribute: int, value: int) -> int:
        return int(self.rt.cudaMemPoolSetAttribute(self.default_pool(), attribute, byref(c_uint64(value))))

    def mem_info(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        ok(self.rt.cudaMemGetInfo(byref(free), byref(total)))
        return free.value, total.value

    def try_write(self, address: int, data: bytes) -> int:
        return int(self.rt.cudaMemcpy(c_void_p(address), data, c_size_t(len(data)), TO_DEVICE))

    def write(self, address: int, data: bytes) -> None:
        ok(self.try_write(address, data))

    def read(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(b"\xff" * size, size)
        ok(self.rt.cudaMemcpy(buffer, c_void_p(address), c_size_t(size), TO_HOST))
        return buffer.raw

    # --- virtual memory management ---
    def reserve(self, size: int, alignment: int = 0, hint: int = 0) -> int:
        address = c_uint64()
        ok(
            self.cuMemAddressReserve(
                byref(address), c_size_t(size), c_size_t(alignment), c_uint64(hint), c_ulonglong(0)
            )
        )
        return address.value

    def address_free(self, address: int, size: int) -> int:
        return int(self.cuMemAddressFree(c_uint64(address), c_size_t(size)))

    def try_create(self, size: int, device: int = 0, handle_types: int = 0) -> tuple[int, int]:
        handle = c_uint64()
        properties = AllocationProp(1, handle_types, Location(1, device))
        code = self.cuMemCreate(byref(handle), c_size_t(size), byref(properties), c_ulonglong(0))
        return code, handle.value

    def create(self, size: int, device: int = 0, handle_types: int = 0) -> int:
        code, handle = self.try_create(size, device, handle_types)
        ok(code)
        return handle

    def release(self, handle: int) -> int:
        return int(self.cuMemRelease(c_uint64(handle)))

    def map(self, address: int, size: int, handle: int, offset: int = 0) -> int:
        return int(self.cuMemMap(c_uint64(address), c_size_t(size), c_size_t(offset), c_uint64(handle), c_ulonglong(0)))

    def unmap(self, address: int, size: int) -> int:
        return int(self.cuMemUnmap(c_uint64(address), c_size_t(size)))

    def set_access(self, address: int, size: int, device: int = 0, flags: int = 3) -> int:
        descriptor = AccessDesc(Location(1, device), flags)
        return int(self.cuMemSetAccess(c_uint64(address), c_size_t(size), byref(descriptor), c_size_t(1)))

    def mapped(self, address: int, size: int) -> int:
        """Create a handle, map it here with full access, and return it."""
        handle = self.create(size)
        ok(self.map(address, size, handle))
        ok(self.set_access(address, size))
        return handle

    # --- streams, events, launches ---
    def stream(self, flags: int = NON_BLOCKING) -> int:
        stream = c_void_p()
        ok(self.rt.cudaStreamCreateWithFlags(byref(stream), flags))
        assert stream.value
        return stream.value

    def event(self, flags: int = 0) -> int:
        event = c_void_p()
        ok(self.rt.cudaEventCreateWithFlags(byref(event), flags))
        assert event.value
        return event.value

    def record(self, event: int, stream: int = 0) -> int:
        return int(self.rt.cudaEventRecord(c_void_p(event), c_void_p(stream)))

    def wait(self, stream: int, event: int) -> int:
        return int(self.rt.cudaStreamWaitEvent(c_void_p(stream), c_void_p(event), 0))

    def query(self, event: int) -> int:
        return int(self.rt.cudaEventQuery(c_void_p(event)))

    def sync_event(self, event: int) -> int:
        return int(self.rt.cudaEventSynchronize(c_void_p(event)))

    def sync_stream(self, stream: int = 0) -> int:
        return int(self.rt.cudaStreamSynchronize(c_void_p(stream)))

    def launch(self, stream: int = 0, count: int = 1, block: int = 32) -> int:
        code = SUCCESS
        for _ in range(count):
            code = self.rt.cudaLaunchKernel(
                c_void_p(1), Dim3(1, 1, 1), Dim3(block, 1, 1), None, c_size_t(0), c_void_p(stream)
            )
        return code

    def elapsed(self, start: int, end: int) -> tuple[int, float]:
        milliseconds = c_float()
        code = self.rt.cudaEventElapsedTime(byref(milliseconds), c_void_p(start), c_void_p(end))
        return code, milliseconds.value

    # --- capture and graphs ---
    def begin(self, stream: int, mode: int = GLOBAL) -> int:
        return int(self.rt.cudaStreamBeginCapture(c_void_p(stream), mode))

    def end(self, stream: int) -> tuple[int, int]:
        graph = c_void_p(1)
        code = self.rt.cudaStreamEndCapture(c_void_p(stream), byref(graph))
        return code, graph.value or 0

    def status(self, stream: int) -> int:
        status = c_int(-1)
        ok(self.rt.cudaStreamIsCapturing(c_void_p(stream), byref(status)))
        return status.value

    def captured(self, stream: int) -> int:
        code, graph = self.end(stream)
        ok(code)
        assert graph
        return graph

    def node_count(self, graph: int) -> int:
        count = c_size_t()
        ok(self.rt.cudaGraphGetNodes(c_void_p(graph), None, byref(count)))
        return count.value

    def instantiate(self, graph: int) -> int:
        exec_ = c_void_p()
        ok(self.rt.cudaGraphInstantiate(byref(exec_), c_void_p(graph), c_ulonglong(0)))
        return exec_.value or 0

    def launch_graph(self, exec_: int, stream: int = 0) -> int:
        return int(self.rt.cudaGraphLaunch(c_void_p(exec_), c_void_p(stream)))

    def last_error(self) -> int:
        return int(self.rt.cudaGetLastError())

    def error_name(self, code: int) -> str:
        self.rt.cudaGetErrorName.restype = c_char_p
        return str(self.rt.cudaGetErrorName(code).decode())
