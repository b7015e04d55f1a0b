"""Runs the command line as a process of its own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def poolalloc(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poolalloc", *arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@contextmanager
def started(command: Sequence[str], **keywords: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process that is gone at the end, with all that it started, however the test ends."""
    with subprocess.Popen(command, start_new_session=True, **keywords) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line with which bad input was refused."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("poolalloc: ")
    return lines[0]
