"""Runs `poolalloc bench` as a user does: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def run_bench(folder: Path, *arguments: str, **environment: str) -> Ran:
    """Run `poolalloc bench ARGUMENTS... -o F`; environment variables are added to this process's."""
    path = folder / "results.json"
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = [sys.executable, "-m", "poolalloc", "bench", *arguments[:at], "-o", str(path), *arguments[at:]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment, cwd=folder
    )
    data = json.loads(path.read_text()) if path.exists() else None
    return Ran(done.returncode, done.stdout, done.stderr, data)
