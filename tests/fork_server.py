"""Starts programs that use torch without importing torch for each of them.

A server process preloads the simulated CUDA runtime, imports torch and then only forks. Each program runs in a child
process of its own, with the `__main__`, environment, arguments and output that `python program.py` (or `python -m
module`) would give it. The simulated GPU reads its settings when a program first calls CUDA, which the server never
does. Programs that must be the first to import torch, or whose environment is read when a process starts, need a fresh
process instead.

A child ends as a program does: threads are waited for, exit handlers run, what `__main__` holds is let go, and the exit
handlers of the libraries run. It skips the rest of Python's own end, which takes two seconds to take torch apart; the
tests with fresh processes cover that.

A command of poolalloc's that starts programs itself (`bench`, `replay --against`) is forked too, and so is what it
starts on a simulated GPU: see `_Forked`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from poolalloc.sim import SimulatedRun  # not imported here: programs that are forked do not have it either

_SERVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); import fork_server; fork_server.serve()"


class ForkServer:
    """The server process; start() is called by the first run()."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        timeout: float,
        *,
        folder: Path | None = None,
        forks: bool = False,
        imports: Sequence[str] = (),
    ) -> tuple[int, str, str]:
        """Run `python ARGUMENTS`; return the exit code (128 + N: ended by signal N), output and error output.

        The arguments begin with a script or `-m MODULE`. `forks`: Pythons that it starts on simulated GPUs are forked.
        `imports` are modules that it will import and that take long; the server imports them once.
        """
        with tempfile.TemporaryDirectory(prefix="fork-server-") as place:
            out, err = Path(place, "out"), Path(place, "err")
            request = {
                "arguments": list(arguments),
                "environment": dict(environment),
                "folder": str(folder or os.getcwd()),
                "forks": forks,
                "imports": list(imports),
                "out": str(out),
                "err": str(err),
            }
            process = self._started()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            child = int(self._line(120))
            try:
                status = int(self._line(timeout))
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                self._line(60)
                raise
            code = os.waitstatus_to_exitcode(status)
            return (128 - code if code < 0 else code), out.read_text(), err.read_text()

    def simulated(
        self,
        arguments: Sequence[str],
        *,
        base: Mapping[str, str],
        timeout: float = 300,
        imports: Sequence[str] = (),
        **device: Any,
    ) -> SimulatedRun:
        """Run `python ARGUMENTS` on simulated GPUs, as run_simulated would."""
        from poolalloc import sim

        with tempfile.TemporaryDirectory(prefix="fork-server-") as place:
            report = Path(place, "report.json")
            environment = sim.sim_environment(**device, report=report, base=base)
            code, out, err = self.run(arguments, environment, timeout, imports=imports)
            found = json.loads(report.read_text()) if report.exists() else None
        return sim.SimulatedRun((sys.executable, *arguments), code, False, 0, out, err, found)

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-c", _SERVER, str(Path(__file__).parent)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, env=self._environment, stdin=pipe, stdout=pipe, bufsize=0)
            self._line(120)
        return self._process

    def _line(self, seconds: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        line = b""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"nothing came from the program within {seconds:g} s")
                piece = self._process.stdout.read(1)
                if not piece:
                    raise RuntimeError("the server that starts programs has ended")
                line += piece
        return line


def serve() -> None:
    """Fork a child for each request (a line of JSON); answer with its process id and then with its wait status."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    import torch

    # Before 2.12 importing these asks CUDA how many devices there are, and no child could use CUDA then.
    imports_ahead = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12)
    if imports_ahead:
        import torch._dynamo  # the first step of any optimizer imports it

    _freeze()
    preloaded = os.environ.get("LD_PRELOAD", "")
    answers.write(b"ready\n")
    for line in requests:
        request = json.loads(line)
        for name in set(request["imports"]) - set(sys.modules) if imports_ahead else ():
            importlib.import_module(name)
            _freeze()
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            os.setsid()
            for number, name in ((1, "out"), (2, "err")):
                file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(file, number)
                os.close(file)
            if request["forks"]:
                _Forked.modules, _Forked.preloaded = set(sys.modules), preloaded
                subprocess.Popen._execute_child = _Forked.start_child  # type: ignore[attr-defined]
            _become(request["arguments"], request["environment"], request["folder"])
        answers.write(b"%d\n" % child)
        answers.write(b"%d\n" % os.waitpid(child, 0)[1])


def _freeze() -> None:
    """Spare children from looking at what is there when they collect garbage, which would copy its pages."""
    gc.collect()
    gc.freeze()


def _become(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> NoReturn:
    """Make this process what `python ARGUMENTS` would have started, and run it to its end."""
    os.environ.clear()
    os.environ.update(environment, POOLALLOC_SIM_OWNER=str(os.getpid()))
    os.chdir(folder)
    module = arguments[1] if arguments[0] == "-m" else None
    sys.argv[:] = ["-m", *arguments[2:]] if module else arguments
    first = folder if module else os.path.dirname(arguments[0])
    sys.path[: 2 if "fork_server" in sys.modules else 1] = [first]  # also instead of "", where `-c` finds modules
    sys.modules.pop("fork_server", None)
    main = sys.modules["__main__"].__dict__
    for name in set(main) - {"__name__", "__builtins__", "__doc__", "__loader__", "__spec__"}:
        del main[name]
    code: object
    try:
        if module:
            runpy._run_module_as_main(module)  # type: ignore[attr-defined]
        else:
            script = arguments[0]
            main.update(__file__=script, __spec__=None, __package__=None, __cached__=None, __annotations__={})
            exec(compile(Path(script).read_text(), script, "exec"), main)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        code = 1
    else:
        code = 0
    _end(main, code)


def _end(main: dict[str, Any], code: object) -> NoReturn:
    """End the process in the order in which Python does."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for name in [name for name in main if name != "__builtins__"]:
        main[name] = None
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    ctypes.PyDLL(None).exit((code or 0) & 0xFF)  # holds the interpreter's lock, so that no thread of Python goes on
    raise AssertionError("exit() has returned")


class _Forked:
    """Takes the place of starting a Python for simulated GPUs in a process that has imported torch and used no CUDA."""

    start = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    modules: set[str]
    preloaded: str

    @staticmethod
    def start_child(popen: Any, args: Any, executable: Any, *rest: Any) -> None:
        """subprocess.Popen._execute_child, whose parameters these are."""
        preexec_fn, _, _, folder, environment, _, _, shell, *pipes = rest[:14]
        new_session = rest[19]
        on_device = environment is not None and environment.get("LD_PRELOAD", "") == _Forked.preloaded
        if shell or preexec_fn or not on_device or args[0] != sys.executable or args[1] == "-c":
            _Forked.start(popen, args, executable, *rest)
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        popen.pid = os.fork()
        if popen.pid == 0:
            try:
                _Forked._be_new(pipes, bool(new_session))
                _become(args[1:], environment, os.fspath(folder or os.getcwd()))
            finally:
                os._exit(255)
        popen._child_created = True
        popen._close_pipe_fds(*pipes)

    @staticmethod
    def _be_new(pipes: Sequence[int], new_session: bool) -> None:
        """Give up what the process had before it was forked: files, handlers and modules."""
        subprocess.Popen._execute_child = _Forked.start  # type: ignore[attr-defined]
        if new_session:
            os.setsid()
        for number, file in ((0, pipes[0]), (1, pipes[3]), (2, pipes[5])):
            if file != -1:
                os.dup2(file, number)
        for file in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):
                if file > 2 and not os.get_inheritable(file):
                    os.close(file)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
        for name in set(sys.modules) - _Forked.modules:
            if not (getattr(sys.modules[name], "__file__", None) or "").endswith(".so"):
                del sys.modules[name]
