"""How much memory poolalloc may hold, and how it gives some back: limits, trimming, callbacks when memory runs out.

Not for figures: memory.py. The manual page is docs/memory-limits.md.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolalloc import _core
from poolalloc._internal.device import device_index
from poolalloc._internal.installed import require_installed
from poolalloc.errors import UsageError
from poolalloc.sizes import parse_size

if TYPE_CHECKING:
    from torch.types import Device

__all__ = [
    "OomCallback",
    "memory_fraction",
    "memory_limit",
    "on_oom",
    "set_memory_fraction",
    "set_memory_limit",
    "trim",
]

_handles: set[OomCallback] = set()


class OomCallback:
    """A callback that on_oom() added. Call it as the function itself, remove() it, or use it in a with statement."""

    def __init__(self, function: Callable[[int, int], object], name: int) -> None:
        self._function = function
        self._name = name
        functools.update_wrapper(self, function, updated=())

    def __call__(self, device: int, size: int) -> object:
        """Call the function."""
        return self._function(device, size)

    def remove(self) -> bool:
        """Take it out. False if it was out already; a call on another thread may still be under way."""
        _handles.discard(self)
        return _core.remove_on_oom(self._name)

    def __enter__(self) -> OomCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def on_oom(callback: Callable[[int, int], object]) -> OomCallback:
    """Have `callback(device, bytes)` called when a request for so many bytes finds no memory on the device.

    It may drop tensors, and allocate some. If it returns something true and memory is still missing once all callbacks
    were called, they are called again for as long as less and less is live. They run in the order in which they were
    added, on the thread that asked for memory, under no lock, before anything waits for the device; their own requests
    call nobody back. What one raises is reported as Python reports what a __del__ raises, and the request goes on.

    Also a decorator.

    Raises:
        NotInstalledError: before install().
    """
    require_installed()
    handle = OomCallback(callback, _core.on_oom(callback))
    _handles.add(handle)
    return handle


@atexit.register
def _remove_all() -> None:
    """Threads of torch may ask for memory while the interpreter ends, and after it."""
    for handle in tuple(_handles):
        handle.remove()


def set_memory_limit(limit: int | str | None, device: Device = None) -> None:
    """Let poolalloc hold at most `limit` bytes (or "40 GiB"; None: no such limit) on a device (None: the current one).

    The fraction of set_memory_fraction() holds as well: the smaller of the two counts. A limit below what is held gives
    back what is idle and needs no wait; what is live stays, and nothing grows until enough of it was freed.

    Raises:
        NotInstalledError: before install().
        UsageError: it is no size, or less than one page of 2 MiB, or there is no such device.
    """
    require_installed()
    size = 0 if limit is None else _size(limit)
    if limit is not None and size == 0:
        raise UsageError("a memory limit of 0 leaves nothing; None stands for no limit")
    _core.set_memory_limit(size, device_index(device))


def memory_limit(device: Device = None) -> int | None:
    """The bytes that set_memory_limit() or the option memory_limit allows on a device, or None."""
    require_installed()
    return _core.memory_limit(device_index(device)) or None


def set_memory_fraction(fraction: float, device: Device = None) -> None:
    """Let poolalloc hold at most this fraction, above 0 and up to 1, of a device's memory (None: the current one).

    The same as torch.cuda.set_per_process_memory_fraction(), which calls it; see set_memory_limit().
    """
    require_installed()
    _core.set_memory_fraction(fraction, device_index(device))


def memory_fraction(device: Device = None) -> float:
    """The fraction of a device's memory that poolalloc may hold."""
    require_installed()
    return _core.memory_fraction(device_index(device))


def trim(target: int | str | None = None, device: Device = None, *, wait: bool = False) -> int:
    """Give idle memory of a device back to it, until poolalloc holds no more than `target` bytes (None: all it can).

    Returns the bytes given back. Only what the device is done with goes, and nothing is waited for; with `wait` the
    work of the streams until now is waited for, so that everything idle can go. Idle memory of private pools that
    a capture has used stays, since a CUDA graph may touch it again. empty_cache() is trim(wait=True) on every device.
    """
    require_installed()
    return _core.trim(0 if target is None else _size(target), device_index(device), wait)


def _size(value: int | str) -> int:
    size = parse_size(value, zero=True) if isinstance(value, str) else int(value)
    if size < 0:
        raise UsageError(f"{size} bytes are no size")
    return size
