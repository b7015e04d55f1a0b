"""Recording what a program asks of poolalloc, into a trace that `poolalloc replay`, `fit` and `tune` read anywhere.

    with poolalloc.record("run.npz"):
        for step in range(10):
            poolalloc.mark(f"step {step}")
            train()

While it goes on, events are streamed into the file by a thread of their own, 48 bytes each; memory stays bounded. When
it ends, the file becomes a trace. What a killed process left can be read too, up to the last half second.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from poolalloc._internal.version import __version__
from poolalloc.errors import PoolallocError, UsageError

if TYPE_CHECKING:
    from poolalloc._internal.trace.format import DeviceInfo

__all__ = ["Recording", "mark", "record"]

_lock = threading.Lock()
_current: Recording | None = None


class Recording:
    """A recording that goes on until stop(), the end of a `with`, or the end of the process."""

    def __init__(self, path: Path, reserved_at_start: dict[int, int]) -> None:
        self.path = path
        """Where the trace will be."""
        self.reserved_at_start = reserved_at_start
        """What poolalloc held on each device when it began, in bytes."""
        self._process = os.getpid()
        self.events: int | None = None
        """How many events were recorded; None while it goes on."""

    def stop(self) -> None:
        """End the recording and make a trace of it. A second call does nothing.

        Raises:
            UsageError: part of it could not be written.
        """
        _stop(self)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "going on" if self.events is None else f"{self.events} events"
        return f"<Recording {self.path}: {state}>"


def record(path: str | os.PathLike[str], *, stacks: bool = False) -> Recording:
    """Record every allocation, free and use by another stream on poolalloc into a trace file (.npz) from now on.

    Blocks that are there already stand at the trace's beginning. Start while no other thread allocates if their order
    matters. One recording goes on at a time.

    Args:
        path: the trace; `%p` in it stands for the number of this process, so that several do not share a file.
        stacks: with each allocation, the lines of Python that led to it (the 64 innermost).

    Raises:
        UsageError: another recording is going on, or the file cannot be written.
        NotInstalledError: poolalloc does not serve this process.
    """
    global _current  # noqa: PLW0603
    from poolalloc import _core
    from poolalloc._internal.installed import require_installed

    installed = require_installed()
    target = Path(os.fspath(path).replace("%p", str(os.getpid()))).absolute()
    if target.exists() and not target.is_file():
        raise UsageError(f"cannot record into {target}: it is no file")
    with _lock:
        if _current is not None:
            raise UsageError(f"a recording into {_current.path} is going on; stop it first")
        header = {
            "bin_limit": installed.config.bin_limit,
            "provenance": {
                "tool": f"poolalloc {__version__} record",
                "allocator": "poolalloc",
                "settings": installed.config.unrecorded().to_conf(),
                "torch": installed.torch_version,
            },
        }
        reserved = _reserved()
        _core.start_recording(os.fspath(target), json.dumps(header), stacks)
        _current = Recording(target, reserved)
        return _current


def mark(text: str) -> None:
    """Say in the recording where the program is, as `mark("step 12")`; does nothing where nothing is recorded."""
    if _current is not None:
        from poolalloc import _core

        _core.mark_recording(text)


def _stop(ended: Recording) -> None:
    global _current  # noqa: PLW0603
    from poolalloc import _core
    from poolalloc._internal.trace import files, log, steps

    with _lock:
        if ended is not _current:
            return
        _current = None
        devices = _devices(ended)
        ended.events = _core.stop_recording()
    if ended.events == 0:
        ended.path.unlink(missing_ok=True)
        return
    trace = steps.with_marks(log.trace_of(ended.path.read_bytes(), devices))
    try:
        files.write(trace, ended.path)
    except OSError as error:
        raise UsageError(
            f"no trace could be made of the recording: {error.strerror or error}; {ended.path} stays as it was "
            "streamed, which all commands read"
        ) from None


def _reserved() -> dict[int, int]:
    from poolalloc import _core

    return {device: _core.stats(device)["reserved"]["current"] for device in _core.devices()}


def _devices(ended: Recording) -> list[DeviceInfo]:
    from poolalloc import _core
    from poolalloc._internal.trace.format import DeviceInfo

    names = {row["device"]: row["name"] for row in _core.probe_devices()["devices"]}
    return [
        DeviceInfo(
            device, names.get(device), _core.stats(device)["total_bytes"], ended.reserved_at_start.get(device, 0)
        )
        for device in _core.devices()
    ]


@atexit.register
def _end_with_process() -> None:
    if _current is not None and _current._process == os.getpid():  # not in a child of fork()
        path = _current.path
        try:
            _current.stop()
        except PoolallocError as error:  # nobody is left to catch it
            print(f"poolalloc: {path}: {error}", file=sys.stderr, flush=True)
