"""Makes the profiles that ship with poolalloc: records the workloads each is for, tunes on them, writes the files.

    python benchmarks/profiles.py                   # poolalloc/profiles/*.toml, from recordings made now
    python benchmarks/profiles.py --keep recordings # recordings in this folder are used again; missing ones are added
    python benchmarks/profiles.py serving           # this one alone

Workloads run under poolalloc on a simulated H100; they need the packages of the extra `bench-models`. A recording holds
what the program asked for, which no allocator changes. What each profile gained, on what it was tuned on and on what
was held out, is written into it, also where that is nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from poolalloc.analysis import tune
from poolalloc.analysis.trace import Trace, read
from poolalloc.bench import workloads
from poolalloc.config import Config
from poolalloc.sim import run_simulated

FOLDER = Path(__file__).parents[1] / "poolalloc" / "profiles"
SIZE = "full"
TRIALS = 60


@dataclass(frozen=True)
class Purpose:
    """What a profile is for, and how it is found."""

    about: str
    workloads: tuple[str, ...]
    objective: tune.Objective
    most_overhead: float | None = None


PURPOSES = {
    "training": Purpose(
        "Training whose batches and lengths vary: memory and the driver's time in balance.",
        ("gpt", "gpt_checkpoint", "hf_llama", "hf_t5", "convnet", "timm_convnext"),
        "balanced",
    ),
    "finetuning": Purpose(
        "Fine-tuning that barely fits its card: least memory, whatever it takes of the driver's time.",
        ("hf_llama_lora", "gpt_checkpoint"),
        "memory",
    ),
    "serving": Purpose(
        "Inference with caches that grow: least of the driver's time at an overhead of at most 5 %.",
        ("serving",),
        "time",
        most_overhead=1.05,
    ),
}


def recording(name: str, folder: Path) -> Trace:
    """Return the recording of a workload, made unless it is there."""
    path = folder / f"{name}.npz"
    if not path.exists():
        print(f"recording {name}", flush=True)
        program = str(workloads.known()[name])
        command = [sys.executable, "-m", "poolalloc", "run", "--record", str(path), program, SIZE]
        done = run_simulated(command)
        if done.returncode != 0:
            raise SystemExit(f"{name}: {(done.stderr or '').strip().splitlines()[-1]}")
    return read(path)


def profile(name: str, purpose: Purpose, folder: Path) -> str:
    """Return the text of a profile's file."""
    bound = "" if purpose.most_overhead is None else f" --most-overhead {purpose.most_overhead}"
    found = tune.tune(
        [recording(workload, folder) for workload in purpose.workloads],
        objective=purpose.objective,
        trials=TRIALS,
        most_overhead=float("inf") if purpose.most_overhead is None else purpose.most_overhead,
        workers=1,  # the same trials whatever the machine
    )
    traces = " ".join(f"{workload}.npz" for workload in purpose.workloads)
    provenance = {
        "about": purpose.about,
        "workloads": [f"{workload} {SIZE}, simulated" for workload in purpose.workloads],
        "command": f"poolalloc tune {traces} -o {name}.toml --objective {purpose.objective}{bound} --trials {TRIALS}",
        **found.provenance,
    }
    return tune.profile(found.config, provenance, every_option=False)


def main() -> None:
    """Make the profiles named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="profiles to make; all by default")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where recordings are kept")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(PURPOSES))
    if unknown:
        parser.error(f"no profile is made under the name {unknown[0]!r}; there are {', '.join(PURPOSES)}")
    with tempfile.TemporaryDirectory(prefix="poolalloc-profiles-") as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in asked.names or PURPOSES:
            text = profile(name, PURPOSES[name], folder)
            (FOLDER / f"{name}.toml").write_text(text, encoding="utf-8")
            print(f"{name}: {Config.load(name).to_conf() or 'the defaults'}", flush=True)


if __name__ == "__main__":
    main()
