"""`poolalloc run`: installs poolalloc, then runs a script or module as python would. Simulated devices: sim.py."""

from __future__ import annotations

import atexit
import builtins
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from poolalloc.cli.common import config_help, fail

_WITH_VALUE = ("--config", "--conf", "--record", "--plan", "--metrics")


class _RunCommand(TyperCommand):
    """Leaves everything from the script or -m on to the program, options included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        position = 0
        while position < len(args) and args[position].startswith("--") and args[position] != "--":
            position += 2 if args[position] in _WITH_VALUE else 1
        if position < len(args) and args[position] != "--":
            args = [*args[:position], "--", *args[position:]]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("run", cls=_RunCommand)(run)


def run(
    program: Annotated[
        list[str] | None,
        typer.Argument(help="A script, or -m MODULE, and its arguments.", metavar="PROGRAM ARGS", show_default=False),
    ] = None,
    *,
    config: Annotated[str | None, typer.Option(help=config_help(), metavar="PROFILE|FILE")] = None,
    conf: Annotated[str | None, typer.Option(help="Options on top of it.", metavar="KEY:VALUE,...")] = None,
    record: Annotated[str | None, typer.Option(help="Record into this trace file.", metavar="FILE.npz")] = None,
    stacks: Annotated[bool, typer.Option("--stacks", help="Record where the program allocates, too.")] = False,
    plan: Annotated[
        str | None, typer.Option(help="Serve it from this plan, made by poolalloc plan.", metavar="PLAN.npz")
    ] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            help="Serve its statistics to Prometheus and poolalloc top at this port, with those of the processes that "
            "it starts; a rank of torchrun's at this port plus LOCAL_RANK.",
            metavar="PORT",
        ),
    ] = None,
    children: Annotated[
        bool, typer.Option("--children/--no-children", help="Whether Pythons that the program starts are served too.")
    ] = True,
) -> None:
    """Run a Python program with poolalloc serving its CUDA memory. The program needs no change.

    `sys.argv`, `sys.path`, `__main__`, tracebacks and the exit code are as under python. Pythons that the program
    starts are served too, with the same options, once they import torch.

    Example: poolalloc run --record run.npz train.py --epochs 3
    """
    if not program or program == ["-m"]:
        fail("give a script or -m MODULE; see poolalloc run --help")
    start = partial(_start, config=config, conf=conf, record=record, stacks=stacks, plan=plan, metrics=metrics)
    start = partial(start, children=children)
    if program[0] == "-m":
        start()
        _run_module(program[1], program[2:])
    elif program[0].startswith("-"):
        fail(f'no option is named "{program[0]}"; see poolalloc run --help')
    elif not os.path.exists(program[0]):
        fail(f"there is no file {program[0]}")
    else:
        start()
        _run_script(program[0], program[1:])


def _start(
    *,
    config: str | None,
    conf: str | None,
    record: str | None,
    stacks: bool,
    plan: str | None,
    metrics: int | None,
    children: bool,
) -> None:
    """Install poolalloc, and let begin what is wanted of it."""
    from poolalloc import recording
    from poolalloc._children import cover, leave_alone
    from poolalloc.config import Config
    from poolalloc.errors import PoolallocError
    from poolalloc.installing import install

    try:
        leave_alone()  # this process is what it says here, also where a covered program started it
        installed = install(Config.load(config=config, conf=conf), plan=plan)
        if record is not None:
            recording.record(record, stacks=stacks)
        folder = None
        if metrics is not None:
            from poolalloc.metrics import serve

            folder = _folder_of_workers() if children else None
            serve(metrics + int(os.environ.get("LOCAL_RANK", "0")), folder=folder)
        if children:
            used = None if installed.plan is None else os.fspath(installed.plan)
            cover(installed.config, plan=used, record=record, stacks=stacks, metrics=folder)
    except PoolallocError as error:
        fail(f"{error}")


def _folder_of_workers() -> Path:
    """Where the processes that the program starts show their statistics, until it ends; nobody else may look."""
    folder = tempfile.mkdtemp(prefix="poolalloc-workers-")
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a child of fork()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def _run_script(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    path = os.path.abspath(name)
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        _search_first(path)
        _execute_spec(PathFinder.find_spec("__main__", [path]), f"__main__ in {name}")
        return
    _search_first(os.path.dirname(os.path.realpath(name)))
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        fail(f"cannot read {name}: {error.strerror}")
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        _end_with(error, None)
    about = {"__file__": path, "__cached__": None, "__loader__": SourceFileLoader("__main__", path)}
    _execute(code, {**about, "__package__": None, "__spec__": None})


def _run_module(name: str, arguments: list[str]) -> None:
    """Finds the module as `python -m` does: a package runs its __main__."""
    _search_first(os.getcwd())
    sys.argv = ["-m", *arguments]
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ImportError as error:
        fail(f"cannot find module {name}: {error}")
    if spec is not None:
        sys.argv[0] = str(spec.origin)
    _execute_spec(spec, f"module {name}")


def _execute_spec(spec: ModuleSpec | None, what: str) -> None:
    loader: Any = spec.loader if spec is not None else None
    code = loader.get_code(spec.name) if spec is not None and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        fail(f"there is no {what} that can be run")
    about = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": loader}
    _execute(code, {**about, "__package__": spec.parent, "__spec__": spec})


def _search_first(folder: str) -> None:
    """The program's imports look in `folder` first, where python would have put it in place of poolalloc's own."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _execute(code: CodeType, about: dict[str, Any]) -> None:
    # A module that stays: threads and atexit functions outlive the last line of the program.
    main = ModuleType("__main__")
    main.__dict__.update(about, __builtins__=builtins)
    if sys.version_info < (3, 14):  # later ones make it when it is asked for
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    _guard(lambda: exec(code, main.__dict__))


def _guard(program: Any) -> None:
    """Run it; an exception ends the process as under python, with a traceback that begins in the program."""
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        own = error.__traceback__
        while own is not None and own.tb_frame.f_code.co_filename == __file__:
            own = own.tb_next
        _end_with(error, own)


def _end_with(error: BaseException, traceback: TracebackType | None) -> NoReturn:
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1)
