"""`poolalloc run` runs a program as python does, with poolalloc underneath."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

RUN = (sys.executable, "-m", "poolalloc", "run")
SHOW = """
import json, os, sys
import helper
main = sys.modules["__main__"]
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "name": __name__, "main": main.__dict__ is globals(), "file": __file__,
    "package": __package__, "spec": __spec__ and __spec__.name, "loader": type(__loader__).__name__,
    "cached": globals().get("__cached__"), "builtins": __builtins__ is __import__("builtins"),
    "annotations": "__annotations__" in globals(), "doc": __doc__, "cwd": os.getcwd(), "flags": list(sys.flags),
}))
"""


@pytest.fixture
def start(
    clean_environment: dict[str, str], fork_server: ForkServer
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(
        *command: str, cwd: Path, code: int | None = 0, fresh: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        if command[: len(RUN)] == RUN and not fresh and "PYTHONPATH" not in environment:
            ended = fork_server.run(command[1:], {**clean_environment, **environment}, 300, folder=cwd)
            done = subprocess.CompletedProcess(command, *ended)
            assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            return done
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            env={**clean_environment, **environment},
            check=False,
        )
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a script, a package, and a module beside each."""
    for folder in (tmp_path / "scripts", tmp_path / "package"):
        folder.mkdir()
        (folder / "helper.py").write_text("")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "scripts" / "show.py").write_text('"""What it sees."""\n' + SHOW)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(SHOW)
    (tmp_path / "package" / "part.py").write_text("from . import helper as own\n" + SHOW)
    os.symlink(tmp_path / "scripts" / "show.py", tmp_path / "link.py")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("scripts/show.py", "a", "--config", "b", "-m", "--", "-x"),
        ("link.py",),
        ("-m", "package", "--conf", "1"),
        ("-m", "package.part", "-m"),
        ("package", "x"),
    ],
    ids=["script", "link", "package", "module", "folder"],
)
def test_a_program_sees_what_it_sees_under_python(start: Callable, program: Path, command: tuple[str, ...]) -> None:
    expected = json.loads(start(sys.executable, *command, cwd=program).stdout)
    assert json.loads(start(*RUN, *command, cwd=program).stdout) == expected


def test_poolalloc_is_installed_with_the_options_given(start: Callable, program: Path) -> None:
    (program / "check.py").write_text(
        "import poolalloc\n"
        "config = poolalloc.installation().config\n"
        "assert poolalloc.install() is poolalloc.installation()\n"
        "print(config.bin_limit, config.memory_fraction)\n"
    )
    (program / "options.toml").write_text('[poolalloc]\nbin_limit = "32 KiB"\nmemory_fraction = 0.5\n')
    done = start(*RUN, "--config", "options.toml", "--conf", "bin_limit:64KiB", "check.py", cwd=program)
    assert done.stdout.split() == ["65536", "0.5"]
    done = start(*RUN, "check.py", cwd=program, POOLALLOC_CONF="bin_limit:1KiB")
    assert done.stdout.split() == ["1024", "1.0"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit", 0),
        ("raise SystemExit('a last word')", 1),
        ("def f():\n    return {}['missing']\nf()", 1),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise RuntimeError('after') from error", 1),
        ("this is no Python", 1),
        ("raise KeyboardInterrupt", None),
        ("import sys\nsys.excepthook = lambda *about: print('own hook', about[0].__name__)\nraise ValueError", 1),
    ],
    ids=["exit-7", "exit", "exit-text", "error", "cause", "syntax", "interrupt", "hook"],
)
def test_the_end_is_as_under_python(start: Callable, program: Path, body: str, code: int | None) -> None:
    (program / "end.py").write_text(body + "\n")
    expected = start(sys.executable, "end.py", cwd=program, code=None)
    done = start(*RUN, "end.py", cwd=program, code=None, fresh=code is None)
    assert done.stderr == expected.stderr
    assert done.stdout == expected.stdout
    assert done.returncode == (130 if code is None else code)
    if code is not None:
        assert expected.returncode == code


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ((), "give a script"),
        (("-m",), "give a script"),
        (("missing.py",), "missing.py"),
        (("-m", "no_such_module_at_all"), "no_such_module_at_all"),
        (("-m", "package.missing"), "package.missing"),
        (("-x", "scripts/show.py"), "-x"),
        (("--bogus", "scripts/show.py"), "--bogus"),
        (("--conf", "bin_limt:1", "scripts/show.py"), "bin_limit"),
        (("--conf", "bin_limit:-1", "scripts/show.py"), "bin_limit"),
        (("--config", "missing.toml", "scripts/show.py"), "missing.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    start: Callable, program: Path, command: tuple[str, ...], text: str
) -> None:
    done = start(*RUN, *command, cwd=program, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


@pytest.mark.parametrize(
    ("torch", "text"),
    [
        ("raise ImportError('there is none here')", "there is none here"),
        (
            "import types\n__version__ = '2.15.0+cpu'\nversion = types.SimpleNamespace(cuda=None, hip=None)",
            "CUDA build",
        ),
    ],
    ids=["no-torch", "cpu-torch"],
)
def test_without_a_cuda_torch_one_line_and_exit_code_2(start: Callable, program: Path, torch: str, text: str) -> None:
    folder = program / "other"
    folder.mkdir()
    (folder / "torch.py").write_text(torch)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = start(*RUN, "scripts/show.py", cwd=program, code=2, PYTHONPATH=path)
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_what_outlives_the_last_line_still_has_its_globals(start: Callable, program: Path) -> None:
    (program / "late.py").write_text(
        "import atexit, threading, time\n"
        "word = 'there'\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread', word))).start()\n"
        "atexit.register(lambda: print('exit', word))\n"
    )
    assert start(*RUN, "late.py", cwd=program).stdout == "thread there\nexit there\n"


def test_a_training_script_that_nobody_adapted_runs_on_poolalloc(on_sim: Callable) -> None:
    outcome = on_sim(
        """
        import torch
        model = torch.nn.Linear(256, 256).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(3):
            model(torch.randn(32, 256, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        print(torch.cuda.memory.get_allocator_backend())
        """,
        command=RUN,
        fresh=True,  # torch is imported by it
    )
    assert outcome.out == "pluggable\n"
    assert outcome.report["calls"]["cuMemCreate"] > 0
    assert "cudaMalloc" not in outcome.report["calls"]
