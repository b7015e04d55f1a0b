"""tools/part.sh: notes how long a part took and whether it failed, and hands its exit code on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "part.sh"


def part(table: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "POOLALLOC_PARTS": str(table)}
    return subprocess.run([TOOL, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_parts_are_told_with_their_exit_codes_and_summed(tmp_path: Path) -> None:
    table = tmp_path / "build" / "parts.tsv"
    assert part(table).stdout == "", "nothing has run yet"
    good = part(table, "first part", "sh", "-c", "echo out; echo err >&2")
    assert (good.returncode, good.stdout, good.stderr) == (0, "out\n", "err\n")
    assert part(table, "second", "sh", "-c", "exit 7").returncode == 7
    table.write_text(table.read_text() + "third\t90\t120.5\t0\n")
    lines = part(table).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["part", "first part", "second", "third", "all"]
    assert lines[3].split() == ["third", "1.5", "2.0"]
    assert [line.endswith("FAILED") for line in lines] == [False, False, True, False, False]
