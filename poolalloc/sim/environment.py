"""The environment variables that put a program on simulated GPUs, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from poolalloc._internal.price_lists import PriceList
from poolalloc.sim.cards import DEFAULT_GPU, SimulationError, find_gpu, library_folder
from poolalloc.sizes import format_size

MINIMUM_MEMORY = 2 * 2**20
MAXIMUM_MEMORY = 2**44
MAXIMUM_DEVICES = 64
MAXIMUM_LAG = 2**40
VMM_FAULTS = ("rdma", "access")
"""What may answer with an error although it is announced: access to memory made for network cards (as on WSL2), or to
any mapped memory (as on some virtual GPUs)."""

# Torch's own switches, each read once in C++.
# cuDNN's graph API is not simulated (csrc/simgpu/stubs/cudnn.cpp): the first has convolutions use the calls before that
# API; the second puts cuDNN's attention behind flash, memory-efficient and plain attention. cuDNN stays available, so
# that torch plans its memory as on a real device.
# The third keeps kernels that were compiled for a simulated card out of the user's cache in ~/.cache/torch/kernels.
_TORCH_SWITCHES = {
    "TORCH_CUDNN_V8_API_DISABLED": "1",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    "USE_PYTORCH_KERNEL_CACHE": "0",
}


def sim_environment(
    gpu: str = DEFAULT_GPU,
    memory: int | None = None,
    *,
    devices: int = 1,
    lag: int = 0,
    virtual_memory: bool = True,
    vmm_fault: str | None = None,
    peers: str | None = None,
    shared: str | None = None,
    prices: PriceList | None = None,
    report: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment in which a program runs on simulated GPUs: `base` (this process's) and what that takes.

    `memory` is bytes per device (default: the card's), `lag` the number of further launches after which an event
    completes, `virtual_memory` whether the cards have virtual memory management, `vmm_fault` what of it fails although
    it is announced (VMM_FAULTS), `peers` the pairs of devices that reach each other's memory, such as "0-1,1-2"
    (default: all; "none"), `shared` the name of the cards, whose memory all processes of that name share (None: each
    process has cards of its own), `prices` how long the driver's work takes (None: no time), `report` the file for the
    JSON report that is written at exit.

    Raises:
        SimulationError: a value is out of range, or there is no such card.
    """
    card = find_gpu(gpu)
    _check_range("memory", memory, MINIMUM_MEMORY, MAXIMUM_MEMORY, format_size)
    _check_range("the number of devices", devices, 1, MAXIMUM_DEVICES)
    _check_range("lag", lag, 0, MAXIMUM_LAG)
    folder = library_folder()
    environment = dict(os.environ if base is None else base)
    for name in (
        "GPU",
        "MEMORY",
        "DEVICES",
        "LAG",
        "VIRTUAL_MEMORY",
        "VMM_FAULT",
        "PEERS",
        "SHARED",
        "DRIVER_COSTS",
        "REPORT",
        "OWNER",
        "QUIET",
        "VALUES",
    ):
        environment.pop(f"POOLALLOC_SIM_{name}", None)  # of a simulation around this one
    if not sees_devices(environment, devices):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment.update(_TORCH_SWITCHES)
    environment["LD_PRELOAD"] = _prepend(str(folder / "libsimgpu.so"), environment.get("LD_PRELOAD", ""))
    environment["LD_LIBRARY_PATH"] = _prepend(str(folder), environment.get("LD_LIBRARY_PATH", ""))
    environment["POOLALLOC_SIM_GPU"] = card.key
    environment["POOLALLOC_SIM_DEVICES"] = str(devices)
    environment["POOLALLOC_SIM_LAG"] = str(lag)
    if not virtual_memory:
        environment["POOLALLOC_SIM_VIRTUAL_MEMORY"] = "0"
    if vmm_fault is not None:
        if vmm_fault not in VMM_FAULTS:
            raise SimulationError(f"the fault of virtual memory is {vmm_fault!r}; known are {', '.join(VMM_FAULTS)}")
        environment["POOLALLOC_SIM_VMM_FAULT"] = vmm_fault
    if peers is not None:
        _check_peers(peers, devices)
        environment["POOLALLOC_SIM_PEERS"] = peers
    if shared is not None:
        _check_shared(shared)
        environment["POOLALLOC_SIM_SHARED"] = shared
    if memory is not None:
        environment["POOLALLOC_SIM_MEMORY"] = str(memory)
    if prices is not None:
        environment["POOLALLOC_SIM_DRIVER_COSTS"] = prices.to_sim()
    if report is not None:
        environment["POOLALLOC_SIM_REPORT"] = str(Path(report).absolute())
    if quiet:
        environment["POOLALLOC_SIM_QUIET"] = "1"
    return environment


def sees_devices(environment: Mapping[str, str], devices: int) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, if it is set, leaves a program any of the simulated devices.

    Where it does not, it is about the real cards of a machine: "" and -1 hide them, and a scheduler hands out others.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return True
    first = value.split(",")[0].strip()
    uuids = (f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" for text in _uuid_digits(devices))
    return first in map(str, range(devices)) or (len(first) > 4 and any(uuid.startswith(first) for uuid in uuids))


def _uuid_digits(devices: int) -> Iterator[str]:
    """The UUIDs of the simulated devices, as csrc/simgpu/properties.cpp makes them."""
    return ((b"poolalloc-simgp" + bytes([index])).hex() for index in range(devices))


def _check_peers(peers: str, devices: int) -> None:
    if peers in ("all", "none"):
        return
    for pair in peers.split(","):
        ends = re.fullmatch(r"(\d+)-(\d+)", pair.strip(), re.ASCII)
        if ends is None or ends[1] == ends[2] or max(int(ends[1]), int(ends[2])) >= devices:
            raise SimulationError(
                f"peers: {pair!r} is no pair of the {devices} devices; write pairs such as 0-1,1-2, or all, or none"
            )


def _check_shared(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):  # the C++ side checks the same (csrc/simgpu/config.cpp)
        raise SimulationError(f"shared: {name!r} is no name of at most 64 letters, digits, '.', '_' and '-'")


def _check_range(what: str, value: int | None, lowest: int, highest: int, show: Callable[[int], str] = str) -> None:
    if value is not None and not lowest <= value <= highest:
        raise SimulationError(f"{what} is {show(value)}; it must be from {show(lowest)} to {show(highest)}")


def _prepend(entry: str, path: str) -> str:
    return ":".join([entry, *(other for other in path.split(":") if other and other != entry)])
