"""Starts programs that use torch without importing torch for each of them.

A server process preloads the simulated CUDA runtime, imports torch and then only forks. Each program runs in a child
process of its own, with the `__main__`, environment, arguments and output that `python program.py` would give it. The
simulated GPU reads its settings when a program first calls CUDA, which the server never does. Programs that must be the
first to import torch, or whose environment is read when a process starts, need a fresh process instead.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_SERVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); import fork_server; fork_server.serve()"


class ForkServer:
    """The server process; start() is called by the first run()."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, script: Path, arguments: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> tuple[int, str, str]:
        """Run the script and return its exit code (128 + N: ended by signal N), output and error output."""
        out, err = script.with_suffix(".out"), script.with_suffix(".err")
        request = {
            "script": str(script),
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": os.getcwd(),
            "out": str(out),
            "err": str(err),
        }
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        child = int(self._line(60))
        try:
            status = int(self._line(timeout))
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            self._line(60)
            raise
        code = os.waitstatus_to_exitcode(status)
        return (128 - code if code < 0 else code), out.read_text(), err.read_text()

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
    import torch  # noqa: F401

    answers.write(b"ready\n")
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            _become(request)
            return
        answers.write(b"%d\n" % child)
        answers.write(b"%d\n" % os.waitpid(child, 0)[1])


def _become(request: dict[str, Any]) -> None:
    """Make this process what `python script` would have started, and run the script."""
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"], POOLALLOC_SIM_OWNER=str(os.getpid()))
    os.chdir(request["folder"])
    script = request["script"]
    sys.argv[:] = [script, *request["arguments"]]
    sys.path[:2] = [os.path.dirname(script)]  # instead of this file's folder and "", where `-c` finds modules
    del sys.modules["fork_server"]
    main = sys.modules["__main__"].__dict__
    for name in set(main) - {"__name__", "__builtins__", "__doc__", "__loader__", "__spec__"}:
        del main[name]
    main.update(__file__=script, __spec__=None, __package__=None, __cached__=None, __annotations__={})
    code = compile(Path(script).read_text(), script, "exec")
    try:
        exec(code, main)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)
