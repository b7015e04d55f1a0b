"""Finds the programs of a bench: workloads by name, workload files and plain scripts by path.

A workload file is a Python file with a literal table SIZES (its keys are the values of --size), a number STEPS (the
default of --steps) and a function `run(size, steps, device)` that yields the number of steps done after each step. It
may name the packages it needs besides torch, NEEDS; say that what it does depends on values on the device, VALUES; and
say in how many processes it runs, each on a device of its own, PROCESSES. Any other Python file is a script. Files are
read, never imported, here: importing one needs torch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from poolalloc.errors import PoolallocError

__all__ = ["Workload", "WorkloadError", "choose_size", "describe", "find", "known"]

DEFAULT_SIZE = "full"


@dataclass(frozen=True)
class Workload:
    """A program to run. sizes and steps are empty and None for a plain script; needs are packages besides torch.

    values: whether what it does depends on values on the device, as every script may. ranks: how many processes.
    """

    name: str
    path: Path
    sizes: tuple[str, ...] = ()
    steps: int | None = None
    needs: tuple[str, ...] = ()
    values: bool = True
    ranks: int = 1

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, or None: the packages it needs that are not installed."""
        packages = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if not packages:
            return None
        verb = "is" if len(packages) == 1 else "are"
        return f"{' and '.join(packages)} {verb} not installed (pip install 'poolalloc[bench-models]')"

    @property
    def is_script(self) -> bool:
        """Whether it runs as `python path arguments...` rather than through its function run."""
        return self.steps is None


class WorkloadError(PoolallocError, ValueError):
    """No such workload, or not one that can be run; the message is for the user."""


def folders() -> list[Path]:
    """Return where workload files are looked for: inside an installed package, in its checkout, in the current one."""
    package = Path(__file__).resolve().parent
    candidates = [
        package / "workload_files",
        package.parent.parent / "benchmarks" / "workloads",
        Path("benchmarks/workloads").absolute(),
    ]
    return [folder for folder in candidates if folder.is_dir()]


def known() -> dict[str, Path]:
    """Return the workloads that can be named, in alphabetical order."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.py")):
            if not path.stem.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find(name: str) -> Workload:
    """Return the workload of this name, or the file at this path.

    Raises:
        WorkloadError: there is none.
    """
    looks_like_path = name.endswith(".py") or "/" in name
    if looks_like_path:
        path = Path(name)
        if not path.is_file():
            raise WorkloadError(f"no such script: {name}")
        if path.suffix != ".py" and not _begins_with_interpreter(path):
            raise WorkloadError(f"{name} is no Python script: its name does not end in .py, and it has no #! line")
        return describe(name, path)
    names = known()
    if name in names:
        return describe(name, names[name])
    if not names:
        raise WorkloadError(
            f"unknown workload {name!r}: the workload files are not installed with this package; run in a checkout of "
            "poolalloc, or give the path of a script"
        )
    raise WorkloadError(f"unknown workload {name!r}; there are {', '.join(names)}, or give the path of a script")


def _begins_with_interpreter(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def describe(name: str, path: Path) -> Workload:
    """Return what the file at `path` is, from its text.

    Raises:
        WorkloadError: it is not Python.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise WorkloadError(f"cannot read {name}: {error}") from error
    sizes: tuple[str, ...] = ()
    steps: int | None = None
    needs: tuple[str, ...] = ()
    has_run = values = False
    ranks = 1
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            has_run = True
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "SIZES" and isinstance(node.value, ast.Dict):
                sizes = strings(node.value.keys)
            elif node.targets[0].id == "NEEDS" and isinstance(node.value, ast.Tuple):
                needs = strings(node.value.elts)
            elif node.targets[0].id == "STEPS" and isinstance(node.value, ast.Constant):
                steps = node.value.value if isinstance(node.value.value, int) else None
            elif node.targets[0].id == "VALUES" and isinstance(node.value, ast.Constant):
                values = node.value.value is True
            elif node.targets[0].id == "PROCESSES" and isinstance(node.value, ast.Constant):
                ranks = node.value.value if isinstance(node.value.value, int) else 1
    if has_run and sizes and steps is not None:
        return Workload(name, path, sizes, steps, needs, values, ranks)
    return Workload(name, path)


def strings(nodes: Iterable[ast.expr | None]) -> tuple[str, ...]:
    """Return the literal strings among the expressions."""
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return tuple(value for value in values if isinstance(value, str))


def choose_size(workload: Workload, size: str | None) -> str:
    """Return the size to run: `size`, or else "full", or the last in the table.

    Raises:
        WorkloadError: the table has no such size.
    """
    if size is None:
        return DEFAULT_SIZE if DEFAULT_SIZE in workload.sizes else workload.sizes[-1]
    if size not in workload.sizes:
        raise WorkloadError(f"{workload.name} has no size {size!r}; it has {', '.join(workload.sizes)}")
    return size
