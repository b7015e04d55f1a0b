"""Measures what driver calls take on a GPU of this machine, and writes the table with which replays are priced.

    python benchmarks/driver_costs.py                  # benchmarks/results/driver-costs/measured-DEVICE.json
    python benchmarks/driver_costs.py -o costs.json    # poolalloc replay run.npz --costs costs.json

Needs poolalloc and a driver; torch is not used. It works on a simulated GPU too
(`poolalloc sim -- python benchmarks/driver_costs.py`), and the table says that it tells nothing about a device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from poolalloc import costs
from poolalloc.errors import PoolallocError

FOLDER = Path(__file__).parent / "results" / "driver-costs"


def main() -> int:
    """Measure, print and write; the exit code is 2 where there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="the file to write")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=40, help="of some 250 calls each")
    asked = parser.parse_args()
    try:
        table = costs.measure(asked.device, asked.rounds)
    except (PoolallocError, RuntimeError) as error:
        print(f"driver_costs: {error}", file=sys.stderr)
        return 2
    print(f"{table.device}: {table.label}; {table.about}")
    for kind, (low, high) in table.microseconds.items():
        print(f"  {kind:<18} {low:>10.2f} to {high:>10.2f} us")
    output = asked.output or FOLDER / f"{table.name}.json"
    output.write_text(table.to_file(), encoding="utf-8")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
