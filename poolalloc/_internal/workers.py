"""The statistics of the processes that a program starts, for metrics at one place (metrics.py).

Each of them listens on a socket in a folder of the program's own, and says what it holds to whoever connects. The
program asks all of them whenever its metrics are asked for; nothing is done while nobody asks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from poolalloc import _core
from poolalloc.errors import UsageError

_TIMEOUT_SECONDS = 1.0  # for all of them together
_MOST_WORKERS = 1024
_MOST_BYTES = 1 << 20  # of what one says


def show(folder: Path) -> None:
    """Listen in the folder, from a thread of its own, until the process ends. Does nothing if that cannot be."""
    path = folder / str(os.getpid())
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        server.bind(str(path))
        server.listen(8)
    except OSError:  # the program has ended, and the folder with it
        server.close()
        return
    threading.Thread(target=_serve, args=(server, os.getpid()), name="poolalloc-metrics", daemon=True).start()


def _serve(server: socket.socket, process: int) -> None:
    while True:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_TIMEOUT_SECONDS)
                connection.sendall(json.dumps({"process": process, "devices": figures()}).encode())


def figures() -> list[dict[str, Any]]:
    """The statistics of each device in use, without those of its heaps. None in a child of fork()."""
    try:
        found = [_core.stats(device) for device in _core.devices()]
    except UsageError:
        return []
    return [{name: value for name, value in stats.items() if name != "heaps"} for stats in found]


def ask(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each process in the folder says, by its number; those that say nothing in time are left out."""
    found: dict[int, list[dict[str, Any]]] = {}
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    for path in sorted(folder.glob("[0-9]*"))[:_MOST_WORKERS]:
        try:
            said = json.loads(_read(path, deadline))
            found[int(said["process"])] = list(said["devices"])
        except ConnectionRefusedError:  # it has ended
            path.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _read(path: Path, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            if not parts:
                connection.connect(str(path))
            part = connection.recv(1 << 16)
            parts.append(part)
            size += len(part)
            if not part:
                return b"".join(parts)
            if size > _MOST_BYTES or time.monotonic() > deadline:
                raise TimeoutError
