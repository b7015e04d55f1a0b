"""Files that commands write: whole or not at all, and nothing but regular files is ever replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from command_line import poolalloc, refused

from poolalloc._internal.atomic_files import whole_file, write_text

SHIPPED = Path(__file__).parent / "data" / "medium_512_training.pickle"


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), whole_file(path) as file:  # noqa: PT012
        file.write_text("new, but cut")
        raise OSError("the disk is full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["profile.toml"]


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join()
    assert found == ["through"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", str(SHIPPED), "-o", "sink"),
        ("replay", "run.npz", "-o", "sink"),
        ("replay", "run.npz", "--html", "sink"),
        ("tune", "run.npz", "--trials", "1", "-o", "sink"),
    ],
)
def test_commands_write_into_pipes(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert poolalloc("import", str(SHIPPED), "-o", "run.npz", cwd=tmp_path).returncode == 0
    sink = tmp_path / "sink"
    os.mkfifo(sink)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(sink.read_bytes()), daemon=True)
    reader.start()
    result = poolalloc(*arguments, cwd=tmp_path)
    reader.join(timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(found[0]) > 100
    assert sink.is_fifo()


def test_the_report_of_a_simulated_gpu_does_not_remove_what_is_no_file(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    os.mkfifo(sink)
    assert "there is no such program" in refused(poolalloc("sim", "-o", str(sink), "--", "no-such-program"))
    assert sink.is_fifo()


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", str(SHIPPED), "-o", "missing/file"),
        ("replay", "run.npz", "-o", "missing/file"),
        ("replay", "run.npz", "--png", "missing/file"),
        ("replay", "run.npz", "--html", "missing/file"),
        ("plan", "run.npz", "-o", "missing/file"),
        ("tune", "run.npz", "-o", "missing/file"),
        ("sim", "-o", "missing/file", "--", "true"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(arguments: tuple[str, ...], tmp_path: Path) -> None:
    line = refused(poolalloc(*arguments, cwd=tmp_path))  # run.npz is not even there
    option = next(argument for argument in arguments[::-1] if argument.startswith("-") and argument != "--")
    assert f"{option if option != '-o' else '--output'}: missing/file: there is no folder" in line
