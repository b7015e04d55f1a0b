"""The rules that every command keeps (poolalloc.cli.RULES), command by command and option by option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from poolalloc.cli import COMMANDS, make_app, run
from poolalloc.cli.common import allocator_names, time_option

GROUP: Any = typer.main.get_command(make_app(list(COMMANDS)))
OPTIONS = [
    (name, option)
    for name, command in GROUP.commands.items()
    for option in command.params
    if option.param_type_name == "option" and option.name != "help"
]
IDS = [f"{name} {option.opts[0]}" for name, option in OPTIONS]
NEEDED = {
    "run": ["program.py"],
    "sim": ["program"],
    "import": ["snapshot.pickle"],
    "replay": ["run.npz"],
    "tune": ["run.npz", "-o", "out.toml"],
    "plan": ["run.npz", "-o", "out.npz"],
    "fit": ["run.npz", "--memory", "1GiB"],
    "report": ["run.npz"],
}
"""What a command must be given; none of the files is there."""
PATHS = {"--output": "FILE", "--html": "FILE", "--png": "FILE"}
UNITS = {"TIME": ["--time", "--timeout", "--every"], "SIZE": ["--memory", "--above"]}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line with which bad input was refused."""
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"poolalloc: {words[0]}: ")
    return line


def with_option(command: str, *words: str) -> list[str]:
    """The command line of a command with an option, before what the command must be given."""
    return [command, *words, *NEEDED.get(command, [])]


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_begin_with_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-such-option" in refused(with_option(command, "--no-such-option"), capsys)


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=IDS)
def test_options_mean_the_same_in_every_command(command: str, option: Any) -> None:
    name = option.opts[-1]
    if name == "--json":
        assert option.is_flag
    if name in PATHS:
        assert option.metavar.split(".")[0] in ("FILE", "PLAN")
        assert not option.is_flag
    if name == "--output":
        assert option.opts == ["-o", "--output"]
    if name == "--against":
        assert option.multiple
        assert option.metavar == "ALLOCATOR"
    if name == "--gpu":
        assert option.metavar == "NAME"
    if name == "--device":
        assert option.metavar == "simulated|real"
    for unit, names in UNITS.items():
        assert (option.metavar == unit) == (name in names)
    assert name not in ("--allocators", "--seconds", "--out", "--output-file")
    assert option.help
    assert option.is_flag or option.metavar


@pytest.mark.parametrize(("command", "option"), [each for each in OPTIONS if each[1].metavar in UNITS], ids=str)
def test_times_and_sizes_are_read_in_one_way(
    command: str, option: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = option.opts[-1]
    words = [word for word in NEEDED.get(command, []) if name not in ("--memory",) or word not in ("--memory", "1GiB")]
    what = "is no time; write it as 500ms, 60s, 2min or 1h" if option.metavar == "TIME" else "is not a size"
    assert f'{name}: "3 parsecs" {what}' in refused([command, name, "3 parsecs", *words], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "option"), [each for each in OPTIONS if each[1].opts[-1] in PATHS], ids=str)
def test_outputs_are_looked_at_before_the_work(
    command: str, option: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("run.npz", "snapshot.pickle"):
        (tmp_path / name).write_text("nothing that could be read")
    before = sorted(tmp_path.iterdir())
    name = option.opts[-1]
    needed = [word for word in NEEDED.get(command, []) if not word.startswith(("-", "out."))]
    for path, problem in (
        ("file/out.png", ""),
        ("/proc/out.png", ""),
        (f"{'x' * 300}.png", "File name too long"),
        (str(tmp_path), "cannot be written"),
    ):
        line = refused([command, name, path, *needed], capsys)
        assert f"{name}: {path}" in line
        assert problem in line
    if needed and command != "sim":
        assert "is what is read" in refused([command, name, needed[0], *needed], capsys)
    if name == "--png":
        assert "a picture ends in one of" in refused([command, name, "out.picture", *needed], capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_two_outputs_are_two_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").touch()
    assert "--html: out is what --output writes" in refused(["replay", "run.npz", "-o", "out", "--html", "out"], capsys)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("60", 60), ("1.5 min", 90), ("2min", 120), ("2m", 120), ("1h", 3600), (".5S", 0.5)],
)
def test_times(text: str, seconds: float) -> None:
    assert time_option("--time", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "0s", "nan", "inf", "1e3s", "1s1s", "1 day", "٣s", "1.2.3s"])
def test_what_is_no_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        time_option("--time", text)
    assert re.search(r"--time: \".*\" (is no time|must be more than 0)", capsys.readouterr().err)


def test_several_allocators_in_one_value_and_settings_whole() -> None:
    assert allocator_names(["default,expandable", "poolalloc", "default", "a:1,b:2", ","]) == [
        *("default", "expandable", "poolalloc", "a:1,b:2"),
    ]


@pytest.mark.parametrize("target", ["99999", "0", "box:99999", "box:port", "http://", "http://:9400"])
def test_a_port_that_cannot_be_is_bad_input(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "write a port from 1 to 65535" in refused(["top", target], capsys)


def test_a_file_that_is_no_script_is_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty.npz", "notes"):
        (tmp_path / name).touch()
        assert "is no Python script" in refused(["bench", f"./{name}"], capsys)


def test_a_trace_is_not_imported_a_second_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.npz").write_bytes(b"PK\x03\x04 and more")
    assert "it is a trace already" in refused(["import", "run.npz"], capsys)


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shipped = str(Path(__file__).parent / "data" / "medium_512_training.pickle")
    trace, page, picture = (str(tmp_path / name) for name in ("run.npz", "run.html", "run.png"))
    for words in (
        ["import", shipped, "-o", trace],
        ["replay", trace, "--html", page, "--png", picture, "-o", str(tmp_path / "run.json")],
        ["report", trace, "--png", picture],
        ["fit", trace, "--memory", "100GiB"],
        ["tune", trace, "-o", str(tmp_path / "run.toml"), "--trials", "1"],
    ):
        assert run([*words, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document
        if words[0] == "replay":
            assert json.loads((tmp_path / "run.json").read_text()) == document
    assert all((tmp_path / name).stat().st_size for name in ("run.html", "run.png", "run.toml"))
