"""Every exception that poolalloc raises. This module imports nothing, so that the native module can look them up early.

Each text says what was asked, what is true and what to do.
"""

from __future__ import annotations

__all__ = [
    "AlreadyInitializedError",
    "ConfigError",
    "DriverError",
    "InvariantViolation",
    "NotInstalledError",
    "OutOfMemoryError",
    "PoolallocError",
    "TorchError",
    "UnknownNameError",
    "UsageError",
]


class PoolallocError(Exception):
    """The base of all of them."""


class ConfigError(PoolallocError, ValueError):
    """An option is unknown, has a value that is not allowed, or contradicts another; or its file cannot be read.

    The text names the option, the value, what is allowed, and for an unknown name the nearest known one.
    """


class AlreadyInitializedError(PoolallocError, RuntimeError):
    """`install()` came after torch had initialised CUDA, when its allocator cannot be changed any more.

    The text says where CUDA was first touched, if that is known, and what to move.
    """


class NotInstalledError(PoolallocError, RuntimeError):
    """Figures of poolalloc's memory were asked for in a process where poolalloc is not installed."""


class TorchError(PoolallocError, RuntimeError):
    """There is no torch, or it is one that poolalloc cannot serve: built without CUDA, or too old."""


class OutOfMemoryError(PoolallocError, RuntimeError):
    """A device has no room for a request, after everything that could be given back was given back.

    The text gives the bytes asked, free on the device, reserved, live and idle, the limit, and what to try.
    """


class DriverError(PoolallocError, RuntimeError):
    """The device's driver refused a call for another reason than memory; the text carries the driver's own code."""


class UsageError(PoolallocError, ValueError):
    """A call broke the rules: an address that is not poolalloc's, a second free, no such device or pool."""


class UnknownNameError(PoolallocError, KeyError):
    """A table of poolalloc's has nothing by that name or number: an allocator, a device, a way of doing something."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvariantViolation(PoolallocError, AssertionError):  # noqa: N818 - the name the core gives it
    """`validate()` found figures that contradict each other: a bug in poolalloc, worth a report."""
