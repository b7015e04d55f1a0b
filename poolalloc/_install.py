"""Puts poolalloc in the place of torch's CUDA allocator. Not for configuration (config.py) or figures (memory.py)."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from poolalloc import _bridge, _core, recording
from poolalloc._first_touch import first_touch
from poolalloc._version import __version__
from poolalloc.config import Config
from poolalloc.errors import AlreadyInitializedError, ConfigError, NotInstalledError, TorchError

MISSING = {
    "torch.cuda.memory_stats, memory_allocated, max_memory_allocated, memory_reserved, memory_summary": (
        "raise RuntimeError; use poolalloc.memory_stats and poolalloc.memory_summary"
    ),
    "torch.cuda.reset_peak_memory_stats, reset_accumulated_memory_stats": (
        "raise RuntimeError; use poolalloc.reset_peak_stats"
    ),
    "torch.accelerator.memory_allocated and its like": "raise RuntimeError; torch.accelerator.empty_cache works",
    "torch.cuda.memory_snapshot, memory._snapshot, memory._record_memory_history": "raise RuntimeError",
    "torch.cuda.get_per_process_memory_fraction": "raises RuntimeError; setting it works",
    "torch.cuda.MemPool, torch.cuda.use_mem_pool": "raise RuntimeError",
    'torch.compile(mode="reduce-overhead")': "raises RuntimeError: its CUDA graphs ask the allocator for more",
    "torch.OutOfMemoryError": "out of memory is a RuntimeError that names the figures",
    "sharing CUDA tensors between processes (IPC)": "raises RuntimeError",
    "torch.backends.cudnn.benchmark": "raises RuntimeError at the first convolution",
    "memory in torch.profiler": "shows 0 bytes",
}
"""What torch's plain pluggable door cannot do, whatever stands behind it: feature, what happens."""


BRIDGE_MISSING = {
    "allocateWithAddress (C++ only)": "raises RuntimeError; no block is placed at an address of the caller's choice",
}
"""What does not work with the bridge: feature, what happens."""


@dataclass(frozen=True)
class Installation:
    """What install() did. Printing it says so in one line."""

    config: Config
    torch_version: str
    library: Path
    """What torch loaded: the bridge built for it, or libpoolalloc.so."""
    backend: str = "plugin"
    """`bridge`: nearly all of torch.cuda's memory calls work; `plugin`: see `missing`."""
    accelerator: bool = True
    """Whether torch.accelerator's memory functions reach poolalloc too."""
    plan: Path | None = None
    """The plan that requests are served from."""

    @property
    def missing(self) -> dict[str, str]:
        """Features of torch that do not work with this backend, and what happens instead."""
        return dict(BRIDGE_MISSING if self.backend == "bridge" else MISSING)

    def __str__(self) -> str:
        return f"poolalloc {__version__} serves torch {self.torch_version} ({self.backend})"


_lock = threading.Lock()
_installation: Installation | None = None


def install(
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    plan: str | os.PathLike[str] | None = None,
    bridge: bool | None = None,
) -> Installation:
    """Let poolalloc serve all CUDA memory of this process's torch. Call it before anything touches CUDA.

    `config` is a Config, a mapping of options, the path of a TOML file, or the name of a profile; None takes the
    defaults. On top of all but a Config come POOLALLOC_CONFIG and POOLALLOC_CONF, so that options can be changed from
    outside.

    `plan` is the path of a file that `poolalloc plan` wrote: requests of a program that does what it says are served
    from it, and others as without it (docs/plan.md). None takes POOLALLOC_PLAN, if that is set.

    `bridge` says whether torch gets poolalloc's bridge, compiled for it on first use and kept: True makes it an error
    if that fails, False takes the plain plugin, and None (or POOLALLOC_BRIDGE unset) takes the plugin with a warning
    where there is no bridge. POOLALLOC_BRIDGE=1 or 0 decides where the argument does not.

    Calling it again with the same configuration, or with None, returns the first result.

    Raises AlreadyInitializedError if torch has already initialised CUDA, PlanError for a file that is no plan,
    ConfigError for options that do not exist, and for those or a plan that differ from an earlier call's, TorchError if
    there is no torch, it is not built for CUDA, or the bridge was demanded and cannot be built.
    """
    global _installation  # noqa: PLW0603
    with _lock:
        if _installation is not None:
            if config is not None and (asked := Config.load(config)) != _installation.config:
                raise ConfigError(
                    f"poolalloc is already installed with {_installation.config.to_conf() or 'the defaults'}, and "
                    f"cannot change to {asked.to_conf() or 'the defaults'}; call install() once, or without a "
                    "configuration where it may have been called before"
                )
            if plan is not None and Path(plan) != _installation.plan:
                raise ConfigError(
                    f"poolalloc is already installed with {_installation.plan or 'no plan'}, and cannot change to "
                    f"{os.fspath(plan)}; name the plan in the first call of install()"
                )
            return _installation
        path = plan if plan is not None else os.environ.get("POOLALLOC_PLAN") or None
        _installation = _install(
            Config.load(config), None if path is None else Path(path), _bridge_wanted() if bridge is None else bridge
        )
    if record := _installation.config.record:
        recording.record(record, stacks=_installation.config.record_stacks)
    return _installation


def is_installed() -> bool:
    """Whether poolalloc serves this process's CUDA memory."""
    return _installation is not None


def installation() -> Installation | None:
    """What install() returned, or None before it."""
    return _installation


def require_installed() -> Installation:
    """Return what install() returned. Raises NotInstalledError before it."""
    if _installation is None:
        raise NotInstalledError(
            "poolalloc is not installed in this process, so there are no figures; call poolalloc.install() before "
            "anything touches CUDA, or start the program with: poolalloc run"
        )
    return _installation


def _bridge_wanted() -> bool | None:
    asked = os.environ.get("POOLALLOC_BRIDGE", "")
    if asked not in ("", "0", "1"):
        raise ConfigError(f'POOLALLOC_BRIDGE is "{asked}"; it must be 1 (the bridge or an error), 0 (never) or unset')
    return None if not asked else asked == "1"


def _install(config: Config, plan: Path | None, bridge: bool | None) -> Installation:
    torch = import_torch()
    _check_untouched(torch)
    # What is to be recorded is recorded from here, where stacks are known, not by the plugin.
    _core.configure(config.unrecorded().to_conf(), None if plan is None else _read_plan(plan))
    if bridge is not False:
        try:
            return _install_bridge(config, plan, torch)
        except _bridge.BridgeError as error:
            if bridge:
                raise TorchError(f"poolalloc.install() has no bridge to torch: {error}") from error
            warnings.warn(_without_bridge(error), RuntimeWarning, stacklevel=4)
    return _install_plugin(config, plan, torch)


def _read_plan(path: Path) -> dict[str, Any]:
    from poolalloc.plan import file  # needs numpy, which poolalloc alone does not

    return file.read(path).to_core()


def _without_bridge(error: Exception) -> str:
    lost = ", ".join(feature for feature in MISSING if feature not in BRIDGE_MISSING)
    return (
        f"poolalloc serves torch without its bridge, so these do not work: {lost}. Why: {error}. "
        "poolalloc build-bridge --force tries again; POOLALLOC_BRIDGE=0 says that it is not wanted"
    )


def _install_bridge(config: Config, plan: Path | None, torch: ModuleType) -> Installation:
    library = _bridge.build(torch)
    try:
        _bridge.load(library)
    except _bridge.BridgeError as error:
        if "already initialized" in str(error):
            raise AlreadyInitializedError(_too_late()) from error
        raise
    return Installation(config, torch.__version__, library, backend="bridge", plan=plan)


def _install_plugin(config: Config, plan: Path | None, torch: ModuleType) -> Installation:
    library = _core.library_path()
    handle = torch.cuda.memory.CUDAPluggableAllocator(library, "poolalloc_malloc", "poolalloc_free")
    for setter, address in _core.hook_addresses().items():
        getattr(handle._allocator, setter)(address)
    before = _allocators(torch)
    try:
        torch.cuda.memory.change_current_allocator(handle)
    except RuntimeError as error:
        raise AlreadyInitializedError(_too_late()) from error
    accelerator = _mend_accelerator(torch, before)
    return Installation(config, torch.__version__, Path(library), accelerator=accelerator, plan=plan)


def import_torch() -> ModuleType:
    """Torch, if it can be served. Raises TorchError."""
    try:
        import torch
    except ImportError as error:
        raise TorchError(f"poolalloc.install() needs torch, which cannot be imported: {error}") from error
    if torch.version.cuda is None:
        raise TorchError(
            f"poolalloc.install() needs a CUDA build of torch; this is torch {torch.__version__}, built without CUDA. "
            "Install another with: pip install torch"
        )
    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise TorchError(f"poolalloc.install() needs torch 2.4 or newer; this is torch {torch.__version__}")
    return torch


def _check_untouched(torch: ModuleType) -> None:
    if torch.cuda.get_allocator_backend() == "pluggable":
        raise AlreadyInitializedError(
            "poolalloc.install() came too late: torch already uses another pluggable allocator "
            "(torch.cuda.memory.change_current_allocator was called), and it can be changed only once in a process. "
            "Remove that call"
        )
    if torch.cuda.is_initialized():
        raise AlreadyInitializedError(_too_late())


def _too_late() -> str:
    text = "poolalloc.install() came too late: torch has already initialised CUDA and cannot change its allocator now. "
    touch = first_touch()
    if touch is None:
        return text + (
            "Where CUDA was first touched is not known, because poolalloc was imported after it. Move "
            "`import poolalloc; poolalloc.install()` to the top of the program, or start it with: poolalloc run"
        )
    line = f": {touch.line}" if touch.line else ""
    return text + (
        f"CUDA was first touched at {touch.filename}, line {touch.lineno}, in {touch.name}{line}. Move "
        "poolalloc.install() above that line, or start the program with: poolalloc run"
    )


# torch keeps the CUDA allocator in two places: c10::cuda::CUDACachingAllocator::allocator, which the swap changes, and
# the table behind c10::GetAllocator, which it does not. torch.accelerator reads the second and would go on talking to
# the built-in allocator, which holds nothing. Both are plain exported symbols, so they can be made to agree.
_CUDA = 1  # c10::DeviceType::CUDA
_GET = "_ZN3c1012GetAllocatorERKNS_10DeviceTypeE"
_SET = "_ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh"
_CURRENT = "_ZN3c104cuda20CUDACachingAllocator9allocatorE"


def _allocators(torch: ModuleType) -> tuple[int | None, int | None]:
    """The CUDA allocator's address in both places; (None, None) where they cannot be read."""
    folder = Path(str(torch.__file__)).parent / "lib"
    try:
        get = ctypes.CDLL(str(folder / "libc10.so"))[_GET]
        current = ctypes.c_void_p.in_dll(ctypes.CDLL(str(folder / "libc10_cuda.so")), _CURRENT).value
    except (OSError, AttributeError, ValueError):
        return None, None
    get.restype = ctypes.c_void_p
    return current, get(ctypes.byref(ctypes.c_int8(_CUDA)))


def _mend_accelerator(torch: ModuleType, before: tuple[int | None, int | None]) -> bool:
    """Make the second place agree with the first; only if they did before, for then both hold the same pointer type."""
    if before[0] is None or before[0] != before[1]:
        return False
    current, _ = _allocators(torch)
    try:
        set_allocator = ctypes.CDLL(str(Path(str(torch.__file__)).parent / "lib" / "libc10.so"))[_SET]
    except (OSError, AttributeError):
        return False
    set_allocator.restype = None
    for priority in range(256):  # what came with a higher one stays; torch 2.15 registers its own with 1, 2.11 with 0
        set_allocator(ctypes.c_int8(_CUDA), ctypes.c_void_p(current), ctypes.c_uint8(priority))
        if _allocators(torch) == (current, current):
            return True
    return False
