"""Turns the JSON of `poolalloc bench` into what is kept and shown: rows without time lines, and a table in Markdown.

    poolalloc bench --gpu h100 -o build/bench/results.json
    python benchmarks/summarize.py build/bench/results.json --keep benchmarks/results/simulated-h100.json

Several files are taken together; a row of a later one replaces the same row of an earlier one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

ALLOCATORS = ("default", "expandable", "poolalloc")


def merge(paths: list[Path]) -> dict[str, Any]:
    """Return the results of all files as one, without details. Raises SystemExit if they are of different devices."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    kept = {key: value for key, value in runs[0].items() if key not in ("rows", "details", "command", "commands")}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    commands: list[str] = []
    for run in runs:
        if any(run[key] != kept[key] for key in ("schema", "torch", "device")):
            sys.exit("the files are of different devices or versions of torch")
        commands += run["commands"] if "commands" in run else [run["command"]]
        rows |= {(row["workload"], row["allocator"]): row for row in run["rows"]}
    return kept | {"commands": list(dict.fromkeys(commands)), "rows": list(rows.values())}


def table(results: dict[str, Any]) -> str:
    """Return overheads and modelled driver time of every workload, with the geometric mean and the worst overhead.

    The times are milliseconds of the whole run, and of a step of the second half.
    """
    cells = {(row["workload"], row["allocator"]): row for row in results["rows"]}
    names = list(dict.fromkeys(row["workload"] for row in results["rows"]))
    overheads: dict[str, list[float]] = {allocator: [] for allocator in ALLOCATORS}
    times: dict[str, list[float]] = {allocator: [] for allocator in ALLOCATORS}
    lines = [
        f"| workload | peak requested | {' | '.join(ALLOCATORS)} | driver ms (a step): {' | '.join(ALLOCATORS)} |",
        "| --- |" + " ---: |" * (1 + 2 * len(ALLOCATORS)),
    ]
    for name in sorted(names):
        rows = [cells.get((name, allocator), {}) for allocator in ALLOCATORS]
        reasons = [row["skipped"] for row in rows if "skipped" in row]
        if reasons:
            lines.append(f"| `{name}` | skipped: {reasons[0]} |" + " |" * (2 * len(ALLOCATORS)))
            continue
        for allocator, row in zip(ALLOCATORS, rows, strict=True):
            if row.get("overhead") is not None:
                overheads[allocator].append(row["overhead"])
        requested = max(row.get("peak_requested_bytes") or 0 for row in rows)
        figures = [f"{requested / 2**30:.1f} GiB", *map(overhead_text, rows)]
        figures += map(time_text, rows)
        for allocator, row in zip(ALLOCATORS, rows, strict=True):
            if total := middle(row, "total"):
                times[allocator].append(total)
        lines.append(f"| `{name}` | {' | '.join(figures)} |")
    for title, of in (("geometric mean", geometric_mean), ("worst", max)):
        figures = [f"{of(overheads[allocator]):.4f}" if overheads[allocator] else "-" for allocator in ALLOCATORS]
        figures += [f"{of(times[allocator]):,.0f}" if times[allocator] else "-" for allocator in ALLOCATORS]
        lines.append(f"| {title} | | {' | '.join(figures)} |")
    return "\n".join(lines)


def overhead_text(row: dict[str, Any]) -> str:
    """Return the overhead of a row, and what must be known about it."""
    if "error" in row:
        return "failed"
    text = "-" if row.get("overhead") is None else f"{row['overhead']:.4f}"
    return f"{text} (out of memory)" if row.get("out_of_memory") else text


def middle(row: dict[str, Any], part: str) -> float | None:
    """Return the modelled milliseconds of a part, half way between the lowest and the highest; None if not known."""
    ends = (row.get("driver_milliseconds") or {}).get(part)
    return None if ends is None else sum(ends) / 2


def time_text(row: dict[str, Any]) -> str:
    """Return the modelled driver time of a row, and of a step of its second half."""
    total, step = middle(row, "total"), middle(row, "second_half_step")
    text = "-" if total is None else f"{total:,.0f}"
    return text if step is None else f"{text} ({step:.2g})"


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean of some positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def main() -> None:
    """Read the files, print the table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files that `poolalloc bench -o` wrote")
    parser.add_argument("--keep", type=Path, help="write the rows, without time lines, to this file")
    arguments = parser.parse_args()
    results = merge(arguments.results)
    if arguments.keep is not None:
        arguments.keep.parent.mkdir(parents=True, exist_ok=True)
        arguments.keep.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    prices = results.get("prices")
    if prices is not None:
        print(f"driver time {prices['label']}")
    simulated = "simulated " if results["device"]["simulated"] else ""
    print(f"{simulated}{results['device']['name']}, torch {results['torch']}\n")
    print(table(results))


if __name__ == "__main__":
    main()
