"""Instructions of allocate and of free, counted by valgrind and compared with the recorded ones.

    python tools/check_instructions.py BUILD            # compare: fails where one has grown by more than 5 %
    python tools/check_instructions.py BUILD --record   # write them down, after a change that is worth it

BUILD is a CMake build folder with POOLALLOC_TESTS (native_instructions: benchmarks/instructions.cpp). Counts do not
depend on what else the machine does, but on the compiler: they are compared with those of the same compiler alone.
Where valgrind is missing, or nothing is recorded for the compiler, one line says so and nothing fails.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "instructions.json"
GROWTH = 1.05

Counts = dict[str, dict[str, float]]
"""Pattern -> allocate or free -> instructions a call."""


def compiler(build: Path) -> str:
    """The compiler of a build, its version and the build type, from CMake's cache."""
    cache = (build / "CMakeCache.txt").read_text()
    found: dict[str, str] = dict(re.findall(r"^(\w+):\w+=(.*)$", cache, re.M))
    version = subprocess.run(
        [found["CMAKE_CXX_COMPILER"], "-dumpfullversion", "-dumpversion", "-dumpmachine"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    name = "clang" if "clang" in Path(found["CMAKE_CXX_COMPILER"]).name else "gcc"
    return f"{name} {' '.join(version)} {found.get('CMAKE_BUILD_TYPE') or 'Release'}"


def count(build: Path) -> Counts:
    """Run every pattern under callgrind. Raises CalledProcessError if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "callgrind"
        ran = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", str(build / "native_instructions")],
            capture_output=True,
            text=True,
            check=True,
        )
        calls = {name: int(pairs) for name, pairs in re.findall(r"^(\w+) (\d+) \d+$", ran.stdout, re.M)}
        costs = inclusive_costs(output.read_text())
    counts: Counts = {}
    for (pattern, function), cost in costs.items():
        counts.setdefault(pattern, {})[function] = round(cost / calls[pattern], 1)
    return {pattern: counts[pattern] for pattern in calls}


def inclusive_costs(profile: str) -> dict[tuple[str, str], int]:
    """(pattern, allocate or free) -> instructions in all calls of Counted<pattern>, from a callgrind file."""
    names: dict[str, str] = {}
    costs: dict[tuple[str, str], int] = {}
    own: tuple[str, str] | None = None
    for line in profile.splitlines():
        if match := re.match(r"(c?fn)=\((\d+)\)(?: (.*))?$", line):
            kind, number, name = match.groups()
            if name:
                names[number] = name
            if kind == "fn":
                own = counted(names[number])
        elif own is not None and re.match(r"[+\-*\d]", line):
            costs[own] = costs.get(own, 0) + int(line.split()[-1])  # own instructions, or those of a call
    return costs


def counted(name: str) -> tuple[str, str] | None:
    """The pattern and the function, if this is one of those counted."""
    match = re.search(r"Counted<.*?(\w+)>::(allocate|free)\(", name)
    return (match[1], match[2]) if match else None


def main() -> int:
    """Count, then compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, metavar="BUILD")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions: not counted, since valgrind is not installed")
        return 0
    own = compiler(arguments.build)
    recorded: dict[str, Counts] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if own not in recorded and not arguments.record:
        print(f"instructions: not compared, since none are recorded for {own}, but for {', '.join(recorded)}")
        return 0
    counts = count(arguments.build)
    if arguments.record:
        RECORD.write_text(json.dumps(recorded | {own: counts}, indent=2) + "\n")
    before = recorded.get(own, counts)
    grown = 0
    print(f"{'instructions a call':22} {'recorded':>10} {'now':>10}   {own}")
    for pattern, functions in counts.items():
        for function, now in functions.items():
            then = before.get(pattern, {}).get(function, now)
            verdict = "GROWN" if now > then * GROWTH else "less: record it" if now * GROWTH < then else ""
            grown += verdict == "GROWN" and not arguments.record
            print(f"{pattern + ', ' + function:22} {then:10.1f} {now:10.1f}   {verdict}")
    if grown:
        print(f"instructions: {grown} counts have grown by more than 5 %", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
