"""benchmarks/summarize.py: rows kept, runs put together, the table's last lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "summarize.py"
GIB = 1 << 30


def row(workload: str, allocator: str, overhead: float) -> dict[str, Any]:
    return {
        "workload": workload,
        "allocator": allocator,
        "peak_requested_bytes": 4 * GIB,
        "peak_reserved_bytes": round(4 * GIB * overhead),
        "overhead": overhead,
        "driver_milliseconds": {"total": [9.0, 11.0], "second_half_step": [0.25, 0.25]},
        "out_of_memory": False,
    }


def write(path: Path, rows: list[dict[str, Any]], device: str = "H100") -> Path:
    data = {
        "schema": 1,
        "torch": "2.15.0",
        "device": {"name": device, "memory_bytes": 80 * GIB, "simulated": True},
        "command": f"poolalloc bench -o {path.name}",
        "rows": rows,
        "details": [{"timeline": [0] * 1000} for _ in rows],
    }
    path.write_text(json.dumps(data))
    return path


def summarize(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_runs_are_put_together_and_the_table_says_mean_and_worst(tmp_path: Path) -> None:
    three = ("default", "expandable", "poolalloc")
    first = write(tmp_path / "a.json", [row("gpt", name, 2.0) for name in three])
    skipped = [{"workload": "lora", "allocator": name, "overhead": None, "skipped": "no peft"} for name in three]
    again = [row("gpt", "poolalloc", 1.0), *(row("net", name, 1.21) for name in three), *skipped]
    second = write(tmp_path / "b.json", again)
    done = summarize(first, second, "--keep", tmp_path / "kept" / "all.json")
    assert done.returncode == 0, done.stderr
    assert "| `gpt` | 4.0 GiB | 2.0000 | 2.0000 | 1.0000 | 10 (0.25) | 10 (0.25) | 10 (0.25) |" in done.stdout
    assert "| `lora` | skipped: no peft |" in done.stdout
    assert "| geometric mean | | 1.5556 | 1.5556 | 1.1000 | 10 | 10 | 10 |" in done.stdout
    assert "| worst | | 2.0000 | 2.0000 | 1.2100 | 10 | 10 | 10 |" in done.stdout
    kept = json.loads((tmp_path / "kept" / "all.json").read_text())
    assert "details" not in kept
    assert kept["commands"] == ["poolalloc bench -o a.json", "poolalloc bench -o b.json"]
    assert len(kept["rows"]) == 9
    once_more = summarize(tmp_path / "kept" / "all.json")
    assert once_more.stdout == done.stdout


def test_runs_on_different_devices_are_not_put_together(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [row("gpt", "default", 2.0)])
    second = write(tmp_path / "b.json", [row("gpt", "poolalloc", 1.0)], device="L4")
    done = summarize(first, second)
    assert done.returncode == 1
    assert "different devices" in done.stderr
