"""A caching allocator for PyTorch's CUDA memory that wastes almost none of it.

    import poolalloc
    poolalloc.install()  # before anything touches CUDA
    ...
    print(poolalloc.fragmentation())

Importing it is cheap: it imports neither torch nor the native module, and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolalloc._first_touch import watch as _watch
from poolalloc._version import __version__

if TYPE_CHECKING:
    from poolalloc import config, errors
    from poolalloc._install import Installation, install, installation, is_installed
    from poolalloc.config import Config
    from poolalloc.errors import AlreadyInitializedError, ConfigError, NotInstalledError, OutOfMemoryError, UsageError
    from poolalloc.exact_bins import ExactBin
    from poolalloc.limits import (
        OomCallback,
        memory_fraction,
        memory_limit,
        on_oom,
        set_memory_fraction,
        set_memory_limit,
        trim,
    )
    from poolalloc.memory import (
        BinShare,
        Fragmentation,
        Share,
        driver_time,
        empty_cache,
        fragmentation,
        memory_stats,
        memory_summary,
        reset_peak_stats,
    )
    from poolalloc.recording import Recording, mark, record
    from poolalloc.scopes import NamedModules, name_modules, scope

__all__ = [
    "AlreadyInitializedError",
    "BinShare",
    "Config",
    "ConfigError",
    "ExactBin",
    "Fragmentation",
    "Installation",
    "NamedModules",
    "NotInstalledError",
    "OomCallback",
    "OutOfMemoryError",
    "Recording",
    "Share",
    "UsageError",
    "__version__",
    "config",
    "driver_time",
    "empty_cache",
    "errors",
    "fragmentation",
    "install",
    "installation",
    "is_installed",
    "mark",
    "memory_fraction",
    "memory_limit",
    "memory_stats",
    "memory_summary",
    "name_modules",
    "on_oom",
    "record",
    "reset_peak_stats",
    "scope",
    "set_memory_fraction",
    "set_memory_limit",
    "trim",
]

# Where each name lives; it is imported when it is first used.
_HOME = {
    "poolalloc._install": ("Installation", "install", "installation", "is_installed"),
    "poolalloc.config": ("Config",),
    "poolalloc.exact_bins": ("ExactBin",),
    "poolalloc.errors": (
        "AlreadyInitializedError",
        "ConfigError",
        "NotInstalledError",
        "OutOfMemoryError",
        "UsageError",
    ),
    "poolalloc.limits": (
        "OomCallback",
        "memory_fraction",
        "memory_limit",
        "on_oom",
        "set_memory_fraction",
        "set_memory_limit",
        "trim",
    ),
    "poolalloc.recording": ("Recording", "mark", "record"),
    "poolalloc.scopes": ("NamedModules", "name_modules", "scope"),
    "poolalloc.memory": (
        "BinShare",
        "Fragmentation",
        "Share",
        "driver_time",
        "empty_cache",
        "fragmentation",
        "memory_stats",
        "memory_summary",
        "reset_peak_stats",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("config", "errors"):
        return import_module(f"poolalloc.{name}")
    if name == "_core":
        return _native_module()
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'poolalloc' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def _native_module() -> Any:
    """Import poolalloc._core. A checkout in the current folder hides an installed package, and may not be built."""
    try:
        return import_module("poolalloc._core")
    except ModuleNotFoundError as error:
        if error.name != "poolalloc._core":
            raise
        raise ImportError(
            f"{__path__[0]} has no native module for this Python; in a checkout build it with make build or "
            "pip install -e ., or start Python in another folder to use a poolalloc that is installed"
        ) from None


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


_watch()
