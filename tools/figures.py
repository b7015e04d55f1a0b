"""Writes the tables and pictures of the manual from recorded results, or checks that they are what the results say.

    figures.py                 write them again from benchmarks/results
    figures.py --demo FILE     take FILE, a fresh `poolalloc bench gpt -o FILE`, into the results first
    figures.py --who FILE      take FILE, a fresh picture of examples/find_a_leak.py
    figures.py --turns FILE    take FILE, a fresh picture of examples/colocate.py
    figures.py --check         exit code 1 with a line for each table or picture that is stale

A picture carries the digest of what it was made from, so that checking needs no drawing. `make figures` runs the
programs and then this. images/replay.png is a photograph of a page in a browser, and not looked at here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tools")]

import draw_house  # noqa: E402
import summarize  # noqa: E402

from poolalloc.bench import picture  # noqa: E402
from poolalloc.bench.results import Results  # noqa: E402

RESULTS = ROOT / "benchmarks/results/simulated-h100.json"
TRIALS = ROOT / "benchmarks/results/simulated-h100-trials.json"
"""Programs that decide by values on the device, and ranks: apart, since the means of the manual are over the others."""
SMALL = ROOT / "benchmarks/results/simulated-h100-small.json"
"""Programs of less than 1 GiB."""
DEMO = ROOT / "benchmarks/results/demo.json"
DEMO_WORKLOAD = "gpt"
IMAGES = ROOT / "docs/images"
ALLOCATORS = ("default", "expandable", "poolalloc")
POINTS = 600
"""Samples of a curve that are kept: more than the picture has columns for."""

README_ROWS = {
    "gpt": "GPT training, batch and length vary (the demo)",
    "gpt_checkpoint": "the same with activation checkpointing",
    "convnet": "convolutional network, image size varies",
    "serving": "inference with growing key-value caches",
    "hf_llama_fsdp2": "Llama 3.1 8B, one of eight ranks under FSDP2",
}

README_SMALL_ROWS = {
    "small_gpt": "GPT of 11 million parameters, 0.5 GiB",
    "small_unet": "U-Net, three image sizes, 0.6 GiB",
    "small_encoder": "encoder of 22 million parameters, inference only, 0.2 GiB",
}

SOURCES = {
    "demo.png": [DEMO, ROOT / "poolalloc/bench/picture.py", ROOT / "poolalloc/bench/panels.py"],
    "house.png": [ROOT / "tools/draw_house.py", ROOT / "tools/check_includes.py"],
    "page.png": [ROOT / "tools/draw_house.py"],
    "turns.png": [ROOT / "examples/colocate.py"],
    "who.png": [ROOT / "examples/find_a_leak.py", ROOT / "poolalloc/analysis/report/picture.py"],
}
KEYWORD = b"poolalloc-sources"

Rows = dict[tuple[str, str], dict[str, Any]]


# --- tables ----------------------------------------------------------------------------------------------------------


def read_rows(file: Path) -> Rows:
    """Every row of the results, by workload and allocator."""
    rows = json.loads(file.read_text())["rows"]
    return {(row["workload"], row["allocator"]): row for row in rows}


def readme_table(rows: Rows, names: dict[str, str] = README_ROWS, digits: int = 0) -> str:
    """A table of README.md: what is reserved for what is requested, and what the driver's work would take."""
    lines = ["| program | torch's default | expandable segments | poolalloc |", "| --- | --- | --- | --- |"]
    for workload, name in names.items():
        cells = []
        for allocator in ALLOCATORS:
            row = rows[workload, allocator]
            best = f"{row['overhead']:.3f}"
            if allocator == "poolalloc":
                best = f"**{best}**"
            cells.append(f"{best}, {summarize.middle(row, 'total'):,.{digits}f} ms")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def small_readme_table(rows: Rows) -> str:
    """The same of small programs, whose milliseconds are few."""
    return readme_table(rows, README_SMALL_ROWS, digits=1)


def manual_table(rows: Rows) -> str:
    """The table of docs/benchmarks.md: every workload."""
    return summarize.table({"rows": list(rows.values())})


TABLES: list[tuple[Path, str, Callable[[Rows], str], Path]] = [
    (ROOT / "README.md", "overhead", readme_table, RESULTS),
    (ROOT / "README.md", "small programs", small_readme_table, SMALL),
    (ROOT / "docs/benchmarks.md", "small programs", manual_table, SMALL),
    (ROOT / "docs/benchmarks.md", "overhead and driver time", manual_table, RESULTS),
    (ROOT / "docs/benchmarks.md", "trials", manual_table, TRIALS),
]


def with_table(text: str, name: str, table: str) -> str:
    """The page with the table between its two marks."""
    begin, end = f"<!-- figures: {name} -->\n", "\n<!-- end of figures -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"figures.py: there are no marks for the table {name!r}")
    return before + begin + table + end + after


# --- pictures --------------------------------------------------------------------------------------------------------


def digest(name: str) -> bytes:
    """What a picture is made from, in one number."""
    parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in SOURCES[name]]
    return hashlib.sha256("".join(parts).encode()).hexdigest().encode()


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: kind and data."""
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def sign(name: str, png: bytes) -> None:
    """Keep a picture with the digest of its sources."""
    text = KEYWORD + b"\0" + digest(name)
    parts = [part for part in chunks(png) if not (part[0] == b"tEXt" and part[1].startswith(KEYWORD))]
    parts.insert(1, (b"tEXt", text))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    (IMAGES / name).write_bytes(png[:8] + body)


def signature(name: str) -> bytes:
    """The digest that a picture carries; none if there is no such picture."""
    if not (IMAGES / name).exists():
        return b""
    for kind, data in chunks((IMAGES / name).read_bytes()):
        if kind == b"tEXt" and data.startswith(KEYWORD + b"\0"):
            return data.partition(b"\0")[2]
    return b""


# --- the command -----------------------------------------------------------------------------------------------------


def take_demo(file: Path) -> None:
    """Keep a fresh run of the demo, with fewer samples, and its rows in place of the old ones of the same program."""
    results = Results.from_json(json.loads(file.read_text()))
    if {(row.workload, row.allocator) for row in results.rows} != {(DEMO_WORKLOAD, name) for name in ALLOCATORS}:
        raise SystemExit(f"figures.py: {file} is not a run of `poolalloc bench {DEMO_WORKLOAD}`")
    results.command = f"poolalloc bench {DEMO_WORKLOAD} -o demo.json"
    for row in results.rows:
        row.timeline = row.timeline.thinned(POINTS)
    DEMO.write_text(json.dumps(results.to_json()) + "\n")
    kept = json.loads(RESULTS.read_text())
    fresh = {row.allocator: row.to_json() for row in results.rows}
    kept["rows"] = [fresh[row["allocator"]] if row["workload"] == DEMO_WORKLOAD else row for row in kept["rows"]]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def write() -> None:
    """Write every table and the pictures that are drawn from results."""
    for page, name, table, results in TABLES:
        page.write_text(with_table(page.read_text(), name, table(read_rows(results))))
    if signature("demo.png") != digest("demo.png"):
        picture.write_png(Results.from_json(json.loads(DEMO.read_text())), IMAGES / "demo.png")
        sign("demo.png", (IMAGES / "demo.png").read_bytes())
    for name, draw in (("house.png", draw_house.draw_house), ("page.png", draw_house.draw_page)):
        if signature(name) != digest(name):
            draw(IMAGES / name)
            sign(name, (IMAGES / name).read_bytes())


def stale() -> list[str]:
    """What is not as the results say, a line for each."""
    rows = read_rows(RESULTS)
    found = []
    for page, name, table, results in TABLES:
        text = page.read_text()
        if with_table(text, name, table(read_rows(results))) != text:
            found.append(f"{page.relative_to(ROOT)}: the table {name!r} is not what {results.name} says")
    for row in json.loads(DEMO.read_text())["rows"]:
        if rows[row["workload"], row["allocator"]] != row:
            found.append(f"{DEMO.name} and {RESULTS.name} differ for {row['workload']} under {row['allocator']}")
    found += [
        f"docs/images/{name}: its sources have changed: {', '.join(file.name for file in files)}"
        for name, files in SOURCES.items()
        if signature(name) != digest(name)
    ]
    return found


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="Writes the tables and pictures of the manual from recorded results.")
    parser.add_argument("--check", action="store_true", help="check only; exit code 1 if something is stale")
    parser.add_argument("--demo", type=Path, help="a fresh `poolalloc bench gpt -o FILE`")
    parser.add_argument("--who", type=Path, help="a fresh picture by `poolalloc report --png`")
    parser.add_argument("--turns", type=Path, help="a fresh picture by examples/colocate.py")
    options = parser.parse_args()
    if options.check:
        lines = stale()
        print("\n".join(lines) if lines else "figures: tables and pictures are what the results say")
        if lines:
            print("write them again: make figures", file=sys.stderr)
        return 1 if lines else 0
    if options.demo is not None:
        take_demo(options.demo)
    for name, fresh in (("who.png", options.who), ("turns.png", options.turns)):
        if fresh is not None:
            sign(name, fresh.read_bytes())
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
