"""Everything that only a machine with a real GPU can tell. A step that fails or hangs does not stop the next.

    make gpu-check                                   # results in build/gpu-check
    make gpu-check PY=python3 OUT=/tmp/results       # with a Python that has torch and the build tools
    python tools/gpu_check.py --only costs,tests     # some steps, in their order
    python tools/gpu_check.py --minutes 9            # what is not done by then is not begun

Needs a poolalloc that this Python can import. Writes to the folder, after every step: report.json (the machine, and of
every step its command, exit code, seconds and last lines), log.txt (all output), and what the steps themselves write:
driver-costs.json, hot-path.json, recording.json, gpt.npz, replay.json, bench.json. The exit code is 1 if a step failed.
Without a real GPU it says so, runs nothing and succeeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAST_LINES = 30


@dataclass(frozen=True)
class Step:
    """One command, with its limit in seconds."""

    name: str
    command: Sequence[str]
    seconds: float


@dataclass
class Done:
    """What became of a step. `code` is None if it was ended at its limit."""

    name: str
    command: str
    code: int | None
    seconds: float
    last_lines: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0


def steps(out: Path) -> list[Step]:
    """All steps, the most telling first."""
    python, benchmarks = sys.executable, ROOT / "benchmarks"
    native = ROOT / "build" / "gpu-native"
    configure = f"cmake -S {ROOT} -B {native} -DPOOLALLOC_PYTHON=OFF -DPOOLALLOC_SIMGPU=OFF -DPOOLALLOC_TESTS=ON"
    build = f"cmake --build {native} --parallel --target native_driver"
    run = f"{native}/native_driver"
    pytest = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    hot_path, recording = benchmarks / "hot_path.py", benchmarks / "recording.py"
    trace, replayed = out / "gpt.npz", out / "replay.json"
    record = f"{python} -m poolalloc run --record {trace} {benchmarks / 'workloads' / 'gpt.py'} small"
    against = "--against default --against expandable --against poolalloc"
    replay = f"{python} -m poolalloc replay {trace} --device real {against} -o {replayed}"
    return [
        Step("doctor", [python, "-m", "poolalloc", "doctor"], 240),
        Step("costs", [python, str(benchmarks / "driver_costs.py"), "-o", str(out / "driver-costs.json")], 120),
        Step("busy", [python, str(benchmarks / "driver_costs.py"), "--busy", "--rounds", "10"], 180),
        Step("driver", ["sh", "-c", f"{configure} && {build} && {run}"], 300),
        Step("tests", [*pytest, "--rootdir", str(ROOT), str(ROOT / "tests" / "gpu")], 540),
        Step("hot-path", [python, str(hot_path), "--real", "--rounds", "3", "--json", str(out / "hot-path.json")], 540),
        Step("recording", ["sh", "-c", f"{python} {recording} --real --json > {out}/recording.json"], 180),
        Step("replay", ["sh", "-c", f"{record} && {replay}"], 240),
        Step("bench", [python, "-m", "poolalloc", "bench", "--device", "real", "--timeout", "2min", "-o",
                       str(out / "bench.json")], 1800),
    ]  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine's names and versions; a tool that is not there leaves its complaint."""
    query = "name,driver_version,vbios_version,memory.total,memory.used,pstate,persistence_mode,mig.mode.current"
    torch = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name(0))"
    asked = {
        "gpu": ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
        "nvcc": ["nvcc", "--version"],
        "compiler": [os.environ.get("CXX", "c++"), "--version"],
        "torch": [sys.executable, "-c", torch],
    }
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("CUDA", "POOLALLOC"))},
        **{name: _said(command) for name, command in asked.items()},
    }


def _said(command: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [str(error)]
    return (done.stdout or done.stderr).strip().splitlines()


def run_step(step: Step, seconds: float, log: Path) -> Done:
    """Run a step for at most so many seconds; its output goes to the end of the log."""
    started = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n===== {step.name}: {' '.join(step.command)}\n".encode())
        output.flush()
        begin = output.tell()
        try:
            process = subprocess.Popen(
                step.command,
                cwd=log.parent,  # not the checkout, which would hide a poolalloc that is installed
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
                    "PYTHONUNBUFFERED": "1",
                },
                start_new_session=True,
            )
        except OSError as error:
            return Done(step.name, " ".join(step.command), 127, 0.0, [str(error)])
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:  # all that it started ends with it, on the way out of an interrupt too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with log.open("rb") as output:
        output.seek(begin)
        lines = output.read().decode(errors="replace").splitlines()
    return Done(step.name, " ".join(step.command), code, round(time.monotonic() - started, 1), lines[-LAST_LINES:])


def run_all(chosen: Sequence[Step], out: Path, minutes: float, about: dict[str, Any]) -> list[Done]:
    """Run the steps one after the other; report.json is whole after each."""
    end = time.monotonic() + 60 * minutes
    done: list[Done] = []
    for step in chosen:
        left = end - time.monotonic()
        if left > 0:
            print(f"{step.name:10} ...", flush=True)
            last = run_step(step, min(step.seconds, left), out / "log.txt")
        else:
            last = Done(step.name, " ".join(step.command), None, 0.0, ["not begun: the time was up"])
        done.append(last)
        ending = "ok" if last.ok else "ended at its limit" if last.code is None else f"exit code {last.code}"
        print(f"{step.name:10} {ending}, {last.seconds:.0f} s", flush=True)
        for line in last.last_lines if not last.ok else last.last_lines[-3:]:
            print(f"    {line}", flush=True)
        report = {"schema": 1, "machine": about, "steps": [asdict(each) for each in done]}
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return done


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="the folder for results")
    parser.add_argument("--only", help="names of steps, separated by commas: " + ", ".join(s.name for s in steps(ROOT)))
    parser.add_argument("--minutes", type=float, default=60.0, help="for all steps together")
    asked = parser.parse_args()
    out = asked.out.resolve()
    chosen = steps(out)
    if asked.only is not None:
        names = asked.only.split(",")
        if unknown := set(names) - {step.name for step in chosen}:
            parser.error(f"--only: there is no step {', '.join(sorted(unknown))}")
        chosen = [step for step in chosen if step.name in names]

    from poolalloc.bench.devices import has_real_gpu

    if not has_real_gpu():
        print("gpu-check: there is no real CUDA device here that torch can use; nothing was run")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    about = machine()
    print(*about["gpu"], *about["torch"], sep="\n", flush=True)
    done = run_all(chosen, out, asked.minutes, about)
    print(f"wrote {out}")
    return 0 if all(each.ok for each in done) else 1


if __name__ == "__main__":
    sys.exit(main())
