"""The command line's manners: help and version, and bad input answered by one line and exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import poolalloc, refused

from poolalloc import __version__
from poolalloc.cli import COMMANDS, GROUPS


def test_without_a_command_it_prints_help() -> None:
    result = poolalloc()
    assert result.returncode == 0
    assert result.stderr == ""
    for group, commands in GROUPS.items():
        panel = result.stdout.partition(group)[2].partition("╰")[0]
        assert all(f"│ {command} " in panel for command in commands)
    assert sorted(command for commands in GROUPS.values() for command in commands) == sorted(COMMANDS)


def test_version() -> None:
    result = poolalloc("--version")
    assert (result.returncode, result.stdout) == (0, f"poolalloc {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = poolalloc(command, "--help")
    assert result.returncode == 0
    assert f"Usage: poolalloc {command}" in result.stdout
    assert "Example" in result.stdout


def test_only_the_file_of_the_command_asked_for_is_imported() -> None:
    code = (
        "import sys, poolalloc.cli as c; c.run(['sim', '--help']);"
        "others = {m for k, m in c.COMMANDS.items() if k != 'sim'}; sys.exit(len(others & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["sim"], "PROGRAM"),
        (["sim", "--frobnicate", "--", "true"], "--frobnicate"),
        (["sim", "--memory", "-3GiB", "--", "true"], '--memory: "-3GiB" is negative'),
        (["sim", "--memory", "0", "--", "true"], "at least one byte"),
        (["sim", "--memory", "lots", "--", "true"], '"lots" is not a size'),
        (["sim", "--memory", "80 GiBi", "--", "true"], "is not a size"),
        (["sim", "--memory", "1", "--", "true"], "from 2 MiB to 16 TiB"),
        (["sim", "--memory", "17TiB", "--", "true"], "from 2 MiB to 16 TiB"),
        (["sim", "--gpu", "h10", "--", "true"], "did you mean h100"),
        (["sim", "--gpu", "banana", "--", "true"], "known are h100"),
        (["sim", "--devices", "0", "--", "true"], "from 1 to 64"),
        (["sim", "--devices", "many", "--", "true"], "--devices"),
        (["sim", "--lag", "-1", "--", "true"], "lag is -1"),
        (["sim", "--timeout", "0", "--", "true"], "more than 0 seconds"),
        (["sim", "--timeout", "nan", "--", "true"], '--timeout: "nan" is no time'),
        (["sim", "-o", "/no/such/folder/report.json", "--", "true"], "there is no folder /no/such/folder"),
        (["sim", "-o", "/", "--", "true"], "--output: / cannot be written"),
        (["sim", "--", "no-such-program"], "no-such-program: there is no such program"),
        (["sim", "--", "train.py"], "did you mean: python train.py?"),
        (["sim", "--", "./"], "./: it cannot be executed"),
        (["sim", "--", sys.executable, "missing.py"], "missing.py: there is no such script"),
        (["sim", "--", sys.executable, "-u", "-X", "dev", "missing.py"], "missing.py: there is no such script"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    assert says in refused(poolalloc(*arguments, cwd=tmp_path))


def test_a_simulator_that_was_not_built_is_one_line(tmp_path: Path) -> None:
    line = refused(poolalloc("sim", "--", "true", env={"POOLALLOC_SIMGPU_DIR": str(tmp_path)}))
    assert "not built" in line


def test_a_checkout_that_was_not_built_says_so(tmp_path: Path) -> None:
    import poolalloc as package

    shutil.copytree(Path(package.__file__).parent, tmp_path / "poolalloc", ignore=shutil.ignore_patterns("*.so*"))
    result = subprocess.run(
        [sys.executable, "-S", "-c", "from poolalloc import _core"],  # no site: it may know of another build
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.splitlines()[-1]
    assert f"{tmp_path / 'poolalloc'} has no native module" in last
    assert "another folder" in last


def script_in(folder: Path) -> str:
    script = folder / "script.py"
    script.write_text("raise SystemExit('the program must not have been started')\n")
    return str(script)


def fake_torch(folder: Path, version: str) -> dict[str, str]:
    """Make a torch that must not be imported, only looked at; return what to add to the environment."""
    package = folder / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the launcher must not import torch')\n")
    (package / "version.py").write_text(version)
    return {"PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])}


def test_no_torch(tmp_path: Path) -> None:
    line = refused(poolalloc("sim", "--", sys.executable, "-S", script_in(tmp_path)))
    assert "has no torch" in line
    assert "pip install torch" in line


CPU_VERSION = "__version__ = '2.11.0+cpu'\ndebug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
ROCM_VERSION = "__version__ = '2.11.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4.4'\n"
CUDA_VERSION = "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"


@pytest.mark.parametrize("version", [CPU_VERSION, ROCM_VERSION])
def test_torch_without_cuda(tmp_path: Path, version: str) -> None:
    line = refused(poolalloc("sim", "--", sys.executable, script_in(tmp_path), env=fake_torch(tmp_path, version)))
    assert "2.11.0+" in line
    assert "not a CUDA build" in line


def test_torch_without_cuda_beside_the_script(tmp_path: Path) -> None:
    """What python would import is decided as python decides it: the script's folder comes first, not this one."""
    fake_torch(tmp_path, CPU_VERSION)
    line = refused(poolalloc("sim", "--", sys.executable, script_in(tmp_path / "site"), cwd=tmp_path))
    assert "not a CUDA build" in line


def test_torch_without_cuda_behind_a_script_with_a_first_line(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text(f"#!{sys.executable}\nraise SystemExit('the program must not have been started')\n")
    tool.chmod(0o755)
    assert "not a CUDA build" in refused(poolalloc("sim", "--", str(tool), env=fake_torch(tmp_path, CPU_VERSION)))


def test_a_cuda_build_passes_the_check(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(17)\n")
    environment = fake_torch(tmp_path, CUDA_VERSION)  # it has no headers to compute values with
    result = poolalloc("sim", "--no-values", "--", sys.executable, str(script), env=environment)
    assert (result.returncode, result.stderr) == (17, "")


def test_a_folder_in_which_the_bridge_cannot_be_kept_is_one_line_that_says_how_to_name_another(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the bridge is compiled for torch")
    (tmp_path / "file").write_text("")
    environment = {"POOLALLOC_CACHE_DIR": str(tmp_path / "file" / "cache")}
    assert "POOLALLOC_CACHE_DIR names another folder" in refused(poolalloc("build-bridge", env=environment))
