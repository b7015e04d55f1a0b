"""Runs programs on a simulated GPU: an unmodified CUDA build of torch over libsimgpu.so instead of the CUDA runtime.

Every allocation is the real one and nothing is computed: whatever is read back from the device is zeros. Not for the
simulation itself (csrc/simgpu), only for choosing a card, checking the program and starting it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from poolalloc.costs import PriceList
from poolalloc.sizes import format_size

DEFAULT_GPU = "h100"
MINIMUM_MEMORY = 2 * 2**20
MAXIMUM_MEMORY = 2**44
MAXIMUM_DEVICES = 64
MAXIMUM_LAG = 2**40
VMM_FAULTS = ("rdma", "access")
"""What may answer with an error although it is announced: access to memory made for network cards (as on WSL2), or to
any mapped memory (as on some virtual GPUs)."""
TIMED_OUT = 124
"""The exit code of a run that its time limit ended, as timeout(1) has it."""

_GRACE_SECONDS = 5.0

# Torch's own switches, each read once in C++.
# cuDNN's graph API is not simulated (csrc/simgpu/stubs/cudnn.cpp): the first has convolutions use the calls before that
# API; the second puts cuDNN's attention behind flash, memory-efficient and plain attention. cuDNN stays available, so
# that torch plans its memory as on a real device.
# The third keeps kernels that were compiled for a simulated card out of the user's cache in ~/.cache/torch/kernels.
_TORCH_SWITCHES = {
    "TORCH_CUDNN_V8_API_DISABLED": "1",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    "USE_PYTORCH_KERNEL_CACHE": "0",
}


class SimulationError(ValueError):
    """A program cannot be run on a simulated GPU; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class SimGpu:
    """One card that can be simulated, with the figures of the real one. Bytes, kHz and bits."""

    key: str
    name: str
    memory_bytes: int
    major: int
    minor: int
    sm_count: int
    clock_khz: int
    mem_clock_khz: int
    bus_bits: int
    l2_bytes: int
    smem_per_block: int
    smem_optin: int
    smem_per_sm: int
    regs_per_sm: int
    max_threads_per_sm: int
    max_blocks_per_sm: int


@dataclass(frozen=True)
class SimulatedRun:
    """What became of a program: exit code (124 if timed out), output where it was captured, and the device's report."""

    args: tuple[str, ...]
    returncode: int
    timed_out: bool
    seconds: float
    stdout: str | None
    stderr: str | None
    report: dict[str, Any] | None


def is_simulated() -> bool:
    """Return whether this process runs on simulated GPUs."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return any(Path(line.split()[-1]).name == "libsimgpu.so" for line in mapped.splitlines() if "/" in line)


def library_folder() -> Path:
    """Return the folder of libsimgpu.so, libcuda.so.1 and gpus.json; POOLALLOC_SIMGPU_DIR names another.

    Raises SimulationError where the simulated runtime was not built.
    """
    folder = Path(os.environ.get("POOLALLOC_SIMGPU_DIR") or Path(__file__).resolve().parent / "simgpu")
    for name in ("libsimgpu.so", "libcuda.so.1", "gpus.json"):
        if not (folder / name).is_file():
            raise SimulationError(
                f"the simulated GPU is not built: {folder / name} is missing; build it with: pip install ."
            )
    return folder


def gpus() -> dict[str, SimGpu]:
    """Return the cards that can be simulated, by key; the first is the default."""
    return dict(_read_gpus(library_folder() / "gpus.json"))


@cache
def _read_gpus(file: Path) -> dict[str, SimGpu]:
    return {row["key"]: SimGpu(**row) for row in json.loads(file.read_text())}


def find_gpu(name: str) -> SimGpu:
    """Return the card called `name` (a key such as `a100`, in any case).

    Raises SimulationError that names the nearest known cards.
    """
    known = gpus()
    if name.lower() in known:
        return known[name.lower()]
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(known)}"
    raise SimulationError(f'there is no simulated GPU "{name}"; {hint}')


def sim_environment(
    gpu: str = DEFAULT_GPU,
    memory: int | None = None,
    *,
    devices: int = 1,
    lag: int = 0,
    virtual_memory: bool = True,
    vmm_fault: str | None = None,
    peers: str | None = None,
    prices: PriceList | None = None,
    report: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment in which a program runs on simulated GPUs: `base` (this process's) and what that takes.

    `memory` is bytes per device (default: the card's), `lag` the number of further launches after which an event
    completes, `virtual_memory` whether the cards have virtual memory management, `vmm_fault` what of it fails although
    it is announced (VMM_FAULTS), `peers` the pairs of devices that reach each other's memory, such as "0-1,1-2"
    (default: all; "none"), `prices` how long the driver's work takes (None: no time), `report` the file for the JSON
    report that is written at exit. Raises SimulationError for bad values.
    """
    card = find_gpu(gpu)
    _check_range("memory", memory, MINIMUM_MEMORY, MAXIMUM_MEMORY, format_size)
    _check_range("the number of devices", devices, 1, MAXIMUM_DEVICES)
    _check_range("lag", lag, 0, MAXIMUM_LAG)
    folder = library_folder()
    environment = dict(os.environ if base is None else base)
    for name in (
        "GPU",
        "MEMORY",
        "DEVICES",
        "LAG",
        "VIRTUAL_MEMORY",
        "VMM_FAULT",
        "PEERS",
        "DRIVER_COSTS",
        "REPORT",
        "OWNER",
        "QUIET",
        "VALUES",
    ):
        environment.pop(f"POOLALLOC_SIM_{name}", None)  # of a simulation around this one
    if not sees_devices(environment, devices):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment.update(_TORCH_SWITCHES)
    environment["LD_PRELOAD"] = _prepend(str(folder / "libsimgpu.so"), environment.get("LD_PRELOAD", ""))
    environment["LD_LIBRARY_PATH"] = _prepend(str(folder), environment.get("LD_LIBRARY_PATH", ""))
    environment["POOLALLOC_SIM_GPU"] = card.key
    environment["POOLALLOC_SIM_DEVICES"] = str(devices)
    environment["POOLALLOC_SIM_LAG"] = str(lag)
    if not virtual_memory:
        environment["POOLALLOC_SIM_VIRTUAL_MEMORY"] = "0"
    if vmm_fault is not None:
        if vmm_fault not in VMM_FAULTS:
            raise SimulationError(f"the fault of virtual memory is {vmm_fault!r}; known are {', '.join(VMM_FAULTS)}")
        environment["POOLALLOC_SIM_VMM_FAULT"] = vmm_fault
    if peers is not None:
        _check_peers(peers, devices)
        environment["POOLALLOC_SIM_PEERS"] = peers
    if memory is not None:
        environment["POOLALLOC_SIM_MEMORY"] = str(memory)
    if prices is not None:
        environment["POOLALLOC_SIM_DRIVER_COSTS"] = prices.to_sim()
    if report is not None:
        environment["POOLALLOC_SIM_REPORT"] = str(Path(report).absolute())
    if quiet:
        environment["POOLALLOC_SIM_QUIET"] = "1"
    return environment


def sees_devices(environment: Mapping[str, str], devices: int) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, if it is set, leaves a program any of the simulated devices.

    Where it does not, it is about the real cards of a machine: "" and -1 hide them, and a scheduler hands out others.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return True
    first = value.split(",")[0].strip()
    uuids = (f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" for text in _uuid_digits(devices))
    return first in map(str, range(devices)) or (len(first) > 4 and any(uuid.startswith(first) for uuid in uuids))


def _uuid_digits(devices: int) -> Iterator[str]:
    """The UUIDs of the simulated devices, as csrc/simgpu/properties.cpp makes them."""
    return ((b"poolalloc-simgp" + bytes([index])).hex() for index in range(devices))


def _check_peers(peers: str, devices: int) -> None:
    if peers in ("all", "none"):
        return
    for pair in peers.split(","):
        ends = re.fullmatch(r"(\d+)-(\d+)", pair.strip(), re.ASCII)
        if ends is None or ends[1] == ends[2] or max(int(ends[1]), int(ends[2])) >= devices:
            raise SimulationError(
                f"peers: {pair!r} is no pair of the {devices} devices; write pairs such as 0-1,1-2, or all, or none"
            )


def _check_range(what: str, value: int | None, lowest: int, highest: int, show: Callable[[int], str] = str) -> None:
    if value is not None and not lowest <= value <= highest:
        raise SimulationError(f"{what} is {show(value)}; it must be from {show(lowest)} to {show(highest)}")


def _prepend(entry: str, path: str) -> str:
    return ":".join([entry, *(other for other in path.split(":") if other and other != entry)])


def prepare(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the file that `command` starts, after checking what can be checked without running it.

    Raises SimulationError for a program or script that does not exist, and for a Python without a CUDA build of torch.
    """
    if not command:
        raise SimulationError("no program was given; example: poolalloc sim -- python train.py")
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        hint = f"; did you mean: python {command[0]}?" if command[0].endswith(".py") else ""
        found = "/" in command[0] and Path(command[0]).exists()
        what = "it cannot be executed" if found else "there is no such program"
        raise SimulationError(f"{command[0]}: {what}{hint}")
    python = _find_python(program, list(command), environment)
    if python is not None:
        _check_script(python)
        _check_torch(python, environment)
    return program


@dataclass(frozen=True)
class _Python:
    """A Python about to be started: interpreter, its own options, and the script if it is a file."""

    interpreter: str
    flags: tuple[str, ...]
    script: Path | None


def _find_python(program: str, command: list[str], environment: Mapping[str, str]) -> _Python | None:
    """Return how `command` starts Python, directly or by a script's first line; None where it starts something else."""
    if re.fullmatch(r"python[0-9.]*", Path(program).name):
        flags, script = _split_python_arguments(command[1:])
        return _Python(program, flags, script)
    line = _interpreter_line(Path(program))
    if not line:
        return None
    if Path(line[0]).name == "env" and len(line) > 1:
        line = line[2:] if line[1] == "-S" else line[1:]
    interpreter = shutil.which(line[0], path=environment.get("PATH")) if line else None
    if interpreter is None or not re.fullmatch(r"python[0-9.]*", Path(interpreter).name):
        return None
    return _Python(interpreter, tuple(line[1:]), Path(program))


def _interpreter_line(file: Path) -> list[str]:
    """Return the words of a script's `#!` line, also in the form that pip writes where the path is too long for one."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except OSError:
        return []
    if not head.startswith(b"#!"):
        return []
    lines = head[2:].decode("utf-8", "replace").splitlines()
    long_form = re.match(r"'''exec' \"?([^\"]+?)\"? \"\$0\"", lines[1]) if len(lines) > 1 else None
    return [long_form[1]] if long_form else lines[0].split() if lines else []


def _split_python_arguments(arguments: list[str]) -> tuple[tuple[str, ...], Path | None]:
    """Return python's own options among `arguments`, and the script they lead to (None: -c, -m, stdin)."""
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            return tuple(flags), Path(argument)
        if argument in ("-", "--help", "--version") or re.match(r"-[A-Za-z]*[cm]", argument):
            break
        flags.append(argument)
        if argument in ("-W", "-X", "--check-hash-based-pycs"):
            flags.append(next(rest, ""))
    return tuple(flags), None


def _check_script(python: _Python) -> None:
    if python.script is not None and not python.script.exists():
        raise SimulationError(f"{python.script}: there is no such script")


# Prints where the program would import torch from, without importing it; argument: what stands first on its path.
_FIND_TORCH = """
import importlib.util, sys
if sys.path[:1] == [""]: sys.path[0] = sys.argv[1]
spec = importlib.util.find_spec("torch")
print(spec.origin or "" if spec else "")
"""


def _find_torch(python: _Python, environment: Mapping[str, str]) -> Path | None:
    """Return the file that `python` would import torch from, "." if it has none; None where it does not work at all.

    Costs one start of the interpreter, once.
    """
    first_on_path = str(python.script.parent.absolute()) if python.script is not None else ""
    # Asked of the bare interpreter: with the simulated runtime preloaded it would write the program's report.
    bare = {name: value for name, value in environment.items() if name != "LD_PRELOAD"}
    return _ask_for_torch((python.interpreter, *python.flags, "-c", _FIND_TORCH, first_on_path), tuple(bare.items()))


@cache
def _ask_for_torch(probe: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> Path | None:
    answer = subprocess.run(
        probe, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return Path(answer.stdout.strip()) if answer.returncode == 0 else None


def _check_torch(python: _Python, environment: Mapping[str, str]) -> None:
    """Raise SimulationError unless `python` would import a CUDA build of torch."""
    origin = _find_torch(python, environment)
    if origin is None:
        return  # not a Python that works; let it say so itself
    if origin == Path():
        raise SimulationError(
            f"{python.interpreter} has no torch; the simulated GPU needs its CUDA build: pip install torch"
        )
    version_file = origin.with_name("version.py")
    text = version_file.read_text() if version_file.is_file() else ""
    version = re.search(r"^__version__[^=\n]*=\s*['\"](.+?)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=\n]*=\s*['\"].+?['\"]", text, re.MULTILINE)
    if version is not None and cuda is None:
        raise SimulationError(
            f"torch {version[1]} of {python.interpreter} is not a CUDA build; the simulated GPU needs one (it needs no"
            " real GPU): pip install torch from PyPI, not from the CPU index"
        )


def add_values(command: Sequence[str], environment: dict[str, str], say: Callable[[str], None]) -> None:
    """Have integers and booleans computed where `command` runs torch: set the variable that names the library for it.

    The library is compiled where that has not been done for this torch. `say` gets a line before, and one that says why
    if it cannot be had; the program then sees zeros.
    """
    program = shutil.which(command[0], path=environment.get("PATH")) if command else None
    python = _find_python(program, list(command), environment) if program else None
    if python is None:
        # Something that may start Python itself.
        interpreter = shutil.which("python", path=environment.get("PATH"))
        python = _Python(interpreter, (), None) if interpreter else None
    origin = _find_torch(python, environment) if python else None
    if origin is None or origin == Path() or not origin.with_name("version.py").is_file():
        return
    # Only here: they need the compiled part of poolalloc, which a simulation without values does not.
    from poolalloc import _sim_values
    from poolalloc._bridge import BridgeError

    try:
        if not _sim_values.values_are_built(origin.parent):
            say("compiling what computes small values for this torch; that is done once and takes about half a minute")
        environment["POOLALLOC_SIM_VALUES"] = str(_sim_values.build_values(origin.parent))
    except BridgeError as error:
        say(f"no values are computed, every one is zero: {error}")


def execute(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Replace this process by the program, so that signals, terminal and exit code are the program's own."""
    program = prepare(command, environment)
    # What is ignored here stays so in the program: Python ignores the first two, and whatever runs this in the
    # background (nohup, cron, some CI) the others.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.execve(program, list(command), dict(environment))


def run_simulated(
    command: Sequence[str],
    *,
    gpu: str = DEFAULT_GPU,
    memory: int | None = None,
    devices: int = 1,
    lag: int = 0,
    virtual_memory: bool = True,
    vmm_fault: str | None = None,
    peers: str | None = None,
    prices: PriceList | None = None,
    quiet: bool = False,
    timeout: float | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    base: Mapping[str, str] | None = None,
) -> SimulatedRun:
    """Run `command` on simulated GPUs and return what became of it, with the device's report.

    Parameters as for sim_environment; `timeout` is in seconds. Raises SimulationError where it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="poolalloc-sim-") as folder:
        report_file = Path(folder) / "report.json"
        environment = sim_environment(
            gpu,
            memory,
            devices=devices,
            lag=lag,
            virtual_memory=virtual_memory,
            vmm_fault=vmm_fault,
            peers=peers,
            prices=prices,
            report=report_file,
            quiet=quiet,
            base=base,
        )
        started = time.monotonic()
        returncode, stdout, stderr = supervise(command, environment, timeout, capture=capture, cwd=cwd)
        seconds = time.monotonic() - started
        report = json.loads(report_file.read_text()) if report_file.is_file() else None
    timed_out = returncode is None
    code = TIMED_OUT if returncode is None else returncode
    return SimulatedRun(tuple(command), code, timed_out, seconds, stdout, stderr, report)


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout: float | None,
    capture: bool = False,
    cwd: str | os.PathLike[str] | None = None,
) -> tuple[int | None, str | None, str | None]:
    """Run the program under a time limit in seconds; return exit code (None: timed out), and captured output or None.

    A program that was ended by signal N has exit code 128 + N. Signals sent to this process are passed on. At the limit
    the whole process group is told to end, and killed where it does not.
    """
    program = prepare(command, environment)
    pipe = subprocess.PIPE if capture else None
    group = _Group()
    with _signals_passed_on(group):
        # A session of its own makes it lead a group that can be ended as a whole; it can still read from the terminal.
        process = subprocess.Popen(
            list(command),
            executable=program,
            env=dict(environment),
            cwd=cwd,
            stdout=pipe,
            stderr=pipe,
            stdin=subprocess.DEVNULL if capture else None,
            text=True,
            start_new_session=True,
        )
        group.start(process.pid)
        with process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                _end_group(group, process)
                return None, *_rest_of_output(process)
            except BaseException:
                _end_group(group, process)
                raise
    code = process.returncode
    return (128 - code if code < 0 else code), stdout, stderr


def _rest_of_output(process: subprocess.Popen[str]) -> tuple[str | None, str | None]:
    """Return what an ended process wrote, without waiting for processes that left its group with its pipes open."""
    try:
        return process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired as error:
        parts = (error.stdout, error.stderr)
        stdout, stderr = (part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts)
        return stdout, stderr


class _Group:
    """The process group of a program; signals that come before there is one wait for it."""

    def __init__(self) -> None:
        self._leader: int | None = None
        self._waiting: list[int] = []

    def start(self, leader: int) -> None:
        self._leader = leader
        while self._waiting:
            self.send(self._waiting.pop(0))

    def send(self, number: int) -> None:
        if self._leader is None:
            self._waiting.append(number)
            return
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self._leader, number)


def _end_group(group: _Group, process: subprocess.Popen[str]) -> None:
    """End the process and all of its group: SIGTERM, and SIGKILL for whoever is left after the grace time."""
    group.send(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    group.send(signal.SIGKILL)
    process.wait()


@contextmanager
def _signals_passed_on(group: _Group) -> Iterator[None]:
    """While in force, signals that ask this process to end go to the group, which decides what to do."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, lambda received, _: group.send(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
