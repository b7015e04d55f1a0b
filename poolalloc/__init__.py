"""A caching allocator for PyTorch's CUDA memory that wastes almost none of it.

    import poolalloc
    poolalloc.install()  # before anything touches CUDA
    ...
    print(poolalloc.fragmentation())

The top level is the runtime: what a program calls that poolalloc serves. It installs itself (`installing`, `auto`), is
configured (`config`), tells figures (`memory`, `metrics`), keeps limits (`limits`), puts memory to sleep (`sleeping`),
records (`recording`, `scopes`) and raises what `errors` lists. The other rooms are packages of their own:

    poolalloc.analysis    what is done with recordings: replay, fit, tune, plan, report, compare, view
    poolalloc.sim         runs programs on a simulated GPU
    poolalloc.bench       runs programs under several allocators and compares them
    poolalloc.cli         the command line
    poolalloc.compat      the names of other libraries that put memory to sleep, served by `sleeping`

The top level may import poolalloc._internal, and no other room.

Importing it is cheap: it imports neither torch nor the native module, and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolalloc._internal import first_touch as _first_touch
from poolalloc._internal import moved as _moved
from poolalloc._internal.version import __version__

if TYPE_CHECKING:
    from poolalloc import analysis, bench, config, errors, metrics, sim
    from poolalloc.analysis.compare import compare
    from poolalloc.config import Config, ExactBin
    from poolalloc.errors import AlreadyInitializedError, ConfigError, NotInstalledError, OutOfMemoryError, UsageError
    from poolalloc.installing import Installation, install, installation, is_installed
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
        Fragmentation,
        MemoryBreakdown,
        SizeClassBreakdown,
        driver_time,
        empty_cache,
        fragmentation,
        memory_stats,
        memory_summary,
        reset_peak_stats,
    )
    from poolalloc.recording import Recording, mark, record
    from poolalloc.scopes import NamedModules, name_modules, scope
    from poolalloc.sleeping import Region, region, regions, sleep, wake

__all__ = [
    "AlreadyInitializedError",
    "Config",
    "ConfigError",
    "ExactBin",
    "Fragmentation",
    "Installation",
    "MemoryBreakdown",
    "NamedModules",
    "NotInstalledError",
    "OomCallback",
    "OutOfMemoryError",
    "Recording",
    "Region",
    "SizeClassBreakdown",
    "UsageError",
    "__version__",
    "analysis",
    "bench",
    "compare",
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
    "metrics",
    "name_modules",
    "on_oom",
    "record",
    "region",
    "regions",
    "reset_peak_stats",
    "scope",
    "set_memory_fraction",
    "set_memory_limit",
    "sim",
    "sleep",
    "trim",
    "wake",
]

# Where each name lives; it is imported when it is first used.
_HOME = {
    "poolalloc.analysis.compare": ("compare",),
    "poolalloc.installing": ("Installation", "install", "installation", "is_installed"),
    "poolalloc.config": ("Config", "ExactBin"),
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
    "poolalloc.sleeping": ("Region", "region", "regions", "sleep", "wake"),
    "poolalloc.scopes": ("NamedModules", "name_modules", "scope"),
    "poolalloc.memory": (
        "SizeClassBreakdown",
        "Fragmentation",
        "MemoryBreakdown",
        "driver_time",
        "empty_cache",
        "fragmentation",
        "memory_stats",
        "memory_summary",
        "reset_peak_stats",
    ),
}
_MODULES = ("analysis", "bench", "config", "errors", "metrics", "sim")
_OLD = {"BinShare": "SizeClassBreakdown", "Share": "MemoryBreakdown"}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"poolalloc.{name}")
    if name in _OLD:
        _moved.warn_of_old_name(name, _OLD[name])
        value = globals()[name] = getattr(import_module("poolalloc.memory"), _OLD[name])
        return value
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


_first_touch.watch()
_moved.keep_old_names()
