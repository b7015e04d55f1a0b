"""What a command would start, checked before it starts: the program, its script, and the torch that it would import."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from poolalloc.sim.cards import SimulationError


def prepare(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the file that `command` starts, after checking what can be checked without running it.

    Raises:
        SimulationError: the program or script does not exist, or the Python has no CUDA build of torch.
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
    from poolalloc._internal.bridge import BridgeError
    from poolalloc.sim import values

    try:
        if not values.values_are_built(origin.parent):
            say("compiling what computes small values for this torch; that is done once and takes about half a minute")
        environment["POOLALLOC_SIM_VALUES"] = str(values.build_values(origin.parent))
    except BridgeError as error:
        say(f"no values are computed, every one is zero: {error}")
