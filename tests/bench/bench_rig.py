"""Runs `poolalloc bench` as a user does, but for what fork_server.py forks instead of starting it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import ForkServer


@dataclass
class Ran:
    """What a bench left behind; data is its JSON, None if it wrote none."""

    code: int
    out: str
    err: str
    data: dict[str, Any] | None

    def row(self, allocator: str) -> dict[str, Any]:
        """Return the one row of an allocator."""
        assert self.data is not None, self.err
        (found,) = [row for row in self.data["rows"] if row["allocator"] == allocator]
        return found


Bench = Callable[..., Ran]


def run_bench(server: ForkServer, folder: Path, *arguments: str, **environment: str) -> Ran:
    """Run `poolalloc bench ARGUMENTS... -o F`; environment variables are added to this process's."""
    path = folder / "results.json"
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = ["-m", "poolalloc", "bench", *arguments[:at], "-o", str(path), *arguments[at:]]
    code, out, err = server.run(command, os.environ | environment, 300, folder=folder, forks=True)
    data = json.loads(path.read_text()) if path.exists() else None
    return Ran(code, out, err, data)
