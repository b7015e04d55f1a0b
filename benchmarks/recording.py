"""What recording costs: the same program with and without, in alternating rounds, as ratios.

    python benchmarks/recording.py          # on a simulated GPU
    python benchmarks/recording.py --real   # on the GPU of this machine

Rounds alternate in one process, so that what else the machine does falls on both; time is that of the thread on a
processor. Prints `torch.empty` + free, and the steps of a small training program.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 15


def compare(work: Callable[[], None], folder: str, *, stacks: bool = False) -> dict[str, float]:
    """Medians of the processor time of a round, in seconds, and the median ratio of neighbouring rounds."""
    import poolalloc

    def timed() -> float:
        work()  # what ran before is forgotten
        started = time.thread_time_ns()
        work()
        return (time.thread_time_ns() - started) / 1e9

    def timed_recording(number: int) -> float:
        with poolalloc.record(Path(folder, f"{number}.npz"), stacks=stacks):
            return timed()

    plain, recorded = [], []
    for number in range(ROUNDS):
        if number % 2:
            plain.append(timed())
        recorded.append(timed_recording(number))
        if not number % 2:
            plain.append(timed())
    return {
        "plain_seconds": statistics.median(plain),
        "recorded_seconds": statistics.median(recorded),
        "ratio": statistics.median(after / before for before, after in zip(plain, recorded, strict=True)),
    }


def measure() -> dict[str, dict[str, float]]:
    """Every case, in this process."""
    import torch

    import poolalloc

    poolalloc.install()

    def empties() -> None:
        for _ in range(20_000):
            torch.empty(1000, device="cuda")

    model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        for _ in range(20):
            model(torch.empty(256, 512, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        return {
            "torch.empty and free": compare(empties, folder),
            "torch.empty and free, with stacks": compare(empties, folder, stacks=True),
            "training steps": compare(train, folder),
            "training steps, with stacks": compare(train, folder, stacks=True),
        }


def main() -> None:
    """Run on a simulated GPU unless asked otherwise, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="on the GPU of this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not (chosen.real or chosen.here):
        words = [sys.executable, __file__, "--here", *(["--json"] if chosen.json else [])]
        raise SystemExit(
            subprocess.run([sys.executable, "-m", "poolalloc", "sim", "--", *words], check=False).returncode
        )
    cases = measure()
    if chosen.json:
        print(json.dumps({"simulated": not chosen.real, "cases": cases}))
        return
    for name, figures in cases.items():
        print(f"{name}: recorded / plain = {figures['ratio']:.3f}{'' if chosen.real else ' (simulated GPU)'}")


if __name__ == "__main__":
    main()
