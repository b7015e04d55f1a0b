"""Reads the figures of a cell: torch's statistics, poolalloc's, the simulated driver's and the real driver's (NVML).

Only used inside the process that runs the workload.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from poolalloc._internal.price_lists import PRICED
from poolalloc.errors import DriverError

# The calls that take, give or map device memory, by their names in the CUDA runtime and driver (without _v2).
MEMORY_CALLS = frozenset(
    {
        "cudaMalloc",
        "cudaMallocManaged",
        "cudaMallocPitch",
        "cudaMalloc3D",
        "cudaFree",
        "cudaMallocAsync",
        "cudaMallocFromPoolAsync",
        "cudaFreeAsync",
        "cudaMemPoolCreate",
        "cudaMemPoolDestroy",
        "cudaMemPoolTrimTo",
        "cuMemAlloc",
        "cuMemFree",
        "cuMemAllocAsync",
        "cuMemFreeAsync",
        "cuMemAddressReserve",
        "cuMemAddressFree",
        "cuMemCreate",
        "cuMemRelease",
        "cuMemMap",
        "cuMemUnmap",
        "cuMemSetAccess",
    }
)


@dataclass
class Reading:
    """One device's figures in bytes; peaks since the start or the last reset."""

    requested: int = 0
    live: int = 0
    reserved: int = 0
    requested_peak: int = 0
    live_peak: int = 0
    reserved_peak: int = 0
    retries: int = 0
    out_of_memory: int = 0
    resident: int | None = None
    """None where the allocator does not say."""


class Source(Protocol):
    """Statistics of an allocator."""

    def devices(self) -> range:
        """Return the devices it may have used; none before CUDA is in use."""

    def read(self, device: int) -> Reading:
        """Return the figures of one device."""

    def reset_peaks(self) -> None:
        """Let the peaks of all devices start again from what is current."""

    def driver_calls(self) -> dict[str, int]:
        """Return the allocator's own count of driver calls, for a GPU that does not count them itself."""

    def driver_work(self) -> dict[str, int]:
        """Return the allocator's own count of the driver's work, for the same; nothing where it does not know it."""


def cuda_devices() -> range:
    """Return the devices of this process, none if CUDA has not been touched; never touches it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return range(0)
    return range(torch.cuda.device_count())


class TorchSource:
    """torch's own allocator."""

    def __init__(self) -> None:
        self._expandable: bool | None = None  # not asked yet

    def devices(self) -> range:
        """Return the devices of this process."""
        return cuda_devices()

    def read(self, device: int) -> Reading:
        """Return torch.cuda.memory_stats of one device, without the cost of flattening it."""
        import torch

        stats: dict[str, Any] = torch._C._cuda_memoryStats(device)
        requested, live, reserved = (
            stats[name]["all"] for name in ("requested_bytes", "allocated_bytes", "reserved_bytes")
        )
        return Reading(
            requested["current"], live["current"], reserved["current"],
            requested["peak"], live["peak"], reserved["peak"],
            stats["num_alloc_retries"], stats["num_ooms"],
        )  # fmt: skip

    def reset_peaks(self) -> None:
        """Reset torch's peaks."""
        import torch

        for device in self.devices():
            torch._C._cuda_resetPeakMemoryStats(device)

    def driver_calls(self) -> dict[str, int]:
        """Return torch's counts of segments taken from and given back to the device."""
        import torch

        names = ("num_device_alloc", "num_device_free")
        stats = [torch._C._cuda_memoryStats(device) for device in self.devices()]
        return {name: sum(one[name] for one in stats) for name in names}

    def driver_work(self) -> dict[str, int]:
        """Return the segments taken and given back; nothing with expandable ones, whose handles it does not count."""
        import torch

        if self._expandable is None:
            self._expandable = bool(torch.cuda.memory._snapshot()["allocator_settings"].get("expandable_segments"))
        calls = self.driver_calls()
        work = {"allocate_segment": calls["num_device_alloc"], "free_segment": calls["num_device_free"]}
        return {} if self._expandable else {kind: count for kind, count in work.items() if count}


class PoolallocSource:
    """poolalloc, by its own statistics."""

    def devices(self) -> range:
        """Return the devices of this process."""
        return cuda_devices()

    def read(self, device: int) -> Reading:
        """Return poolalloc.memory_stats of one device."""
        import poolalloc

        stats = poolalloc.memory_stats(device)
        requested, live, reserved = (stats[name] for name in ("requested", "live", "reserved"))
        return Reading(
            requested["current"], live["current"], reserved["current"],
            requested["peak"], live["peak"], reserved["peak"],
            stats["retries"], stats["out_of_memory"], stats["resident"]["current"],
        )  # fmt: skip

    def reset_peaks(self) -> None:
        """Reset poolalloc's peaks."""
        import poolalloc

        for device in self.devices():
            poolalloc.reset_peak_stats(device)

    def driver_calls(self) -> dict[str, int]:
        """Return poolalloc's own count of the calls that take, give or map memory; it is one for all devices."""
        import poolalloc

        calls: dict[str, int] = poolalloc.memory_stats(0)["driver_calls"]
        return {kind: calls[kind] for kind in PRICED if calls.get(kind)}

    def driver_work(self) -> dict[str, int]:
        """Return poolalloc's own count of handles and pages; it is one for all devices."""
        import poolalloc

        return dict(poolalloc.memory_stats(0)["driver_work"])


def source_in_place() -> Source:
    """Return the statistics of whatever allocator serves this process; CUDA must be in use."""
    import torch

    return TorchSource() if torch.cuda.memory.get_allocator_backend() == "native" else PoolallocSource()


class Peaks:
    """Keeps peaks over resets: a program may call reset_peak_memory_stats, and the cell's peak is that of all parts."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: dict[int, tuple[int, int, int]] = {}

    def keep(self) -> None:
        """Remember the peaks until now; called before every reset."""
        for device in self._source.devices():
            now = self._source.read(device)
            kept = self._kept.get(device, (0, 0, 0))
            self._kept[device] = (
                max(kept[0], now.requested_peak),
                max(kept[1], now.live_peak),
                max(kept[2], now.reserved_peak),
            )

    def read(self, device: int) -> Reading:
        """Return the figures of one device with the peaks of its whole life."""
        now = self._source.read(device)
        requested, live, reserved = self._kept.get(device, (0, 0, 0))
        now.requested_peak = max(now.requested_peak, requested)
        now.live_peak = max(now.live_peak, live)
        now.reserved_peak = max(now.reserved_peak, reserved)
        return now

    def watch(self, owner: Any, name: str) -> None:
        """Call keep before every call of the function `name` of `owner`, if it has one."""
        reset: Callable[..., Any] | None = getattr(owner, name, None)
        if reset is None:
            return

        def keep_and_reset(*arguments: Any, **named: Any) -> Any:
            self.keep()
            return reset(*arguments, **named)

        setattr(owner, name, keep_and_reset)


class SimulatedDriver:
    """The simulated CUDA runtime that is loaded in this process.

    Raises:
        DriverError: there is none.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        try:
            for name in ("simgpu_used_bytes", "simgpu_peak_used_bytes", "simgpu_capacity_bytes"):
                function = getattr(library, name)
                function.argtypes, function.restype = [ctypes.c_int], ctypes.c_uint64
            library.simgpu_report_json.argtypes = [ctypes.c_char_p, ctypes.c_int]
            library.simgpu_report_json.restype = ctypes.c_int
        except AttributeError as error:
            raise DriverError("the simulated GPU is not loaded in this process") from error
        self._library = library

    def used(self, device: int) -> int:
        """Return the bytes of physical memory in use."""
        return int(self._library.simgpu_used_bytes(device))

    def peak(self, device: int) -> int:
        """Return the most bytes that were ever in use."""
        return int(self._library.simgpu_peak_used_bytes(device))

    def capacity(self, device: int) -> int:
        """Return the device's memory in bytes."""
        return int(self._library.simgpu_capacity_bytes(device))

    def work(self) -> dict[str, int]:
        """Return what it has done so far, in handles and pages (poolalloc/_internal/driver_work.py)."""
        work: dict[str, int] = self.report()["driver_work"]
        return work

    def report(self) -> dict[str, Any]:
        """Return the report as it is now."""
        size = 1 << 20
        buffer = ctypes.create_string_buffer(size)
        self._library.simgpu_report_json(buffer, size)
        report: dict[str, Any] = json.loads(buffer.value)
        return report


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def nvml_used_bytes() -> dict[str, int]:
    """Return the used bytes of every real GPU of the machine by its UUID, without creating a context.

    Raises:
        DriverError: NVML is missing or refuses.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise DriverError(f"NVML cannot be loaded: {error}") from error

    def call(name: str, *arguments: Any) -> None:
        code = getattr(nvml, name)(*arguments)
        if code != 0:
            raise DriverError(f"{name} failed with NVML code {code}")

    call("nvmlInit_v2")
    try:
        count = ctypes.c_uint()
        call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        used: dict[str, int] = {}
        for index in range(count.value):
            handle, memory, uuid = ctypes.c_void_p(), _NvmlMemory(), ctypes.create_string_buffer(96)
            call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            call("nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(len(uuid)))
            used[uuid.value.decode().removeprefix("GPU-")] = int(memory.used)
        return used
    finally:
        nvml.nvmlShutdown()
