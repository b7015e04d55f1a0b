"""Who may share a simulated card: the file it lies in, whose it must be, and the settings all processes must agree on.

What sharing does to memory is in cases_shared.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import started

from poolalloc import sim

PAGE = 2 << 20

# Takes one page, says what it got and what is free, and waits for the end of its input.
PROGRAM = """
import ctypes, sys
rt = ctypes.CDLL(sys.argv[1])
pointer, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
code = rt.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1))
rt.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
print(code, free.value, flush=True)
sys.stdin.read()
"""
COMMAND = [sys.executable, "-S", "-c", PROGRAM, str(sim.library_folder() / "libsimgpu.so")]
SETTINGS = {"GPU": "a100", "MEMORY": str(16 * PAGE), "DEVICES": "2"}


def environment(name: str, **settings: str) -> dict[str, str]:
    switches = {"SHARED": name, **SETTINGS, **settings}
    return {**os.environ, **{f"POOLALLOC_SIM_{key}": value for key, value in switches.items()}}


def answer(name: str, **settings: str) -> tuple[list[int], str]:
    """What a program that ends at once got, and what it wrote to stderr."""
    done = subprocess.run(
        COMMAND, env=environment(name, **settings), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return [int(figure) for figure in done.stdout.split()], done.stderr


@contextmanager
def sharing(name: str) -> Iterator[subprocess.Popen[str]]:
    """While in force, another program holds a page of the card."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started(COMMAND, env=environment(name), **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"0 {15 * PAGE}\n"
        yield process
        process.communicate()


@pytest.fixture
def name() -> Iterator[str]:
    """A name that no other test has; its file goes in any case."""
    text = f"test-{os.getpid()}"
    yield text
    file_of(text).unlink(missing_ok=True)


def file_of(name: str) -> Path:
    return Path(f"/dev/shm/poolalloc-sim-{os.geteuid()}-{name}")


def test_the_file_is_the_users_own_and_goes_with_the_last_program(name: str) -> None:
    with sharing(name):
        assert file_of(name).stat().st_mode & 0o777 == 0o600
        assert answer(name) == ([0, 14 * PAGE], "")
        assert file_of(name).exists()
    assert not file_of(name).exists()


def test_another_name_is_another_card(name: str) -> None:
    with sharing(name):
        assert answer(name + ".2") == ([0, 15 * PAGE], "")
    assert not file_of(name + ".2").exists()


@pytest.mark.parametrize(
    ("variable", "value", "difference"),
    [
        ("GPU", "h100", "its gpu is a100, not h100"),
        ("MEMORY", str(8 * PAGE), f"its memory is {16 * PAGE} bytes, not {8 * PAGE}"),
        ("DEVICES", "1", "its number of devices is 2, not 1"),
    ],
)
def test_other_settings_are_refused_while_the_card_is_in_use(
    variable: str, value: str, difference: str, name: str
) -> None:
    message = f"simgpu: POOLALLOC_SIM_SHARED is '{name}', but {difference}; no device is simulated\n"
    with sharing(name):
        assert answer(name, **{variable: value}) == ([100, 0], message)
        assert answer(name) == ([0, 14 * PAGE], "")
    assert answer(name, **{variable: value})[1] == ""


def test_what_killed_programs_left_is_made_anew(name: str) -> None:
    with sharing(name) as process:
        process.kill()
    assert file_of(name).exists()
    assert answer(name, MEMORY=str(8 * PAGE)) == ([0, 7 * PAGE], "")
    assert not file_of(name).exists()
    file_of(name).touch(0o600)
    assert answer(name) == ([0, 15 * PAGE], "")


def symbolic_link(file: Path, folder: Path) -> None:
    file.symlink_to(folder / "other")


def second_name(file: Path, folder: Path) -> None:
    own = file.with_name(file.name + ".own")
    own.touch(0o600)
    file.hardlink_to(own)


def open_to_others(file: Path, folder: Path) -> None:
    file.touch(0o600)
    file.chmod(0o660)


def pipe(file: Path, folder: Path) -> None:
    os.mkfifo(file, 0o600)


def of_another_user(file: Path, folder: Path) -> None:
    file.touch(0o600)
    os.chown(file, 12345, 12345)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (symbolic_link, "is a symbolic link"),
        (second_name, "has another name"),
        (open_to_others, "can be opened by other users"),
        (pipe, "is no plain file"),
        pytest.param(
            of_another_user,
            "belongs to another user",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user"),
        ),
    ],
)
def test_a_file_that_somebody_planted_is_refused(
    plant: Callable[[Path, Path], None], complaint: str, name: str, tmp_path: Path
) -> None:
    file = file_of(name)
    plant(file, tmp_path)
    try:
        got, errors = answer(name)
        assert got == [100, 0]
        assert errors.startswith(f"simgpu: POOLALLOC_SIM_SHARED is '{name}', but {file} {complaint}")
        assert errors.count("\n") == 1
        assert not (tmp_path / "other").exists(), "nothing is written through a link"
        assert file.lstat().st_size in (0, len(str(tmp_path / "other"))), "nothing is written"
    finally:
        file.with_name(file.name + ".own").unlink(missing_ok=True)


def test_the_command_line_names_the_card(name: str) -> None:
    command = [sys.executable, "-m", "poolalloc", "sim", "--no-values", "--shared", name]
    command += ["--gpu", "a100", "--memory", f"{16 * PAGE}", "--devices", "2", "--"]
    command += ["sh", "-c", 'exec "$@"', "sh", *COMMAND]  # a Python without torch would be refused
    with sharing(name):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"0 {14 * PAGE}\n", "")
