"""Where built bridges are kept, with a stand-in for the compiler. The folder's own rules: test_private_folder.py."""

from __future__ import annotations

import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from poolalloc._internal import bridge

TORCH = ModuleType("torch")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; every build appends a line to a file beside it."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\ncat > /dev/null\necho built >> '{tmp_path}/builds'\n"
        'while [ $# -gt 1 ]; do shift; done\necho built > "$1"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(bridge, "plan", lambda torch: bridge.Plan((str(compiler),), "", "bridge.so"))
    monkeypatch.setenv("POOLALLOC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


def builds(cache: Path) -> int:
    return len((cache.parent / "builds").read_text().splitlines())


def test_it_is_built_once_and_the_descriptor_is_the_file(cache: Path) -> None:
    first, second = bridge.build(TORCH), bridge.build_somewhere(TORCH)
    assert (first.built, second.built, builds(cache)) == (True, False, 1)
    for library in (first, second):
        assert library.path == cache / "bridge.so"
        assert os.path.samestat(os.fstat(library.descriptor), library.path.stat())


def test_a_cache_that_cannot_be_used_gives_way_to_a_temporary_one_with_a_warning(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    temporary = cache.parent / "temporary" / f"poolalloc-{os.geteuid()}"
    with pytest.warns(RuntimeWarning) as caught:
        assert bridge.build_somewhere(TORCH).path == temporary / "bridge.so"
    (text,) = (str(warning.message) for warning in caught)
    assert f"others may write to {cache} (mode 777)" in text
    assert text.endswith(f"It is kept in {temporary} instead")
    with pytest.warns(RuntimeWarning):
        assert not bridge.build_somewhere(TORCH).built  # the next process finds it
    assert list(cache.iterdir()) == []


def test_a_temporary_folder_that_somebody_else_made_is_not_used_either(cache: Path) -> None:
    cache.write_text("no folder")
    planted = cache.parent / "temporary" / f"poolalloc-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    (planted / "bridge.so").write_text("planted")
    with pytest.warns(RuntimeWarning, match="cannot be kept in"):
        library = bridge.build_somewhere(TORCH)
    assert library.path.read_text() == "built\n"
    assert library.path.parent not in (planted, cache)


def test_the_command_names_the_folder_and_builds_nowhere_else(cache: Path) -> None:
    cache.write_text("no folder")
    with pytest.raises(bridge.BridgeError, match=f"cannot be kept in {cache}: .* POOLALLOC_CACHE_DIR names another"):
        bridge.build(TORCH)
    assert not (cache.parent / "builds").exists()


def test_a_planted_library_is_not_loaded(cache: Path) -> None:
    bridge.build(TORCH)
    (cache / "bridge.so").chmod(0o666)
    with pytest.warns(RuntimeWarning, match=f"others may write to {cache / 'bridge.so'}"):
        assert bridge.build_somewhere(TORCH).path.parent != cache


def test_it_is_loaded_by_its_path_unless_somebody_else_could_put_another_file_there(cache: Path) -> None:
    library = bridge.build(TORCH)
    assert library.loadable_path() == str(cache.resolve() / "bridge.so")
    cache.parent.chmod(0o1777)  # sticky, as /tmp
    assert library.loadable_path() == str(cache.resolve() / "bridge.so")
    cache.parent.chmod(0o777)
    by_descriptor = library.loadable_path()
    assert by_descriptor == f"/proc/{os.getpid()}/fd/{library.descriptor}"
    assert subprocess.check_output(["cat", by_descriptor]) == b"built\n"  # another process reads it by this name
    cache.parent.chmod(0o700)
    (cache / "bridge.so").rename(cache / "bridge.so.old")
    (cache / "bridge.so").write_text("another")
    assert Path(library.loadable_path()).read_text() == "built\n"


def test_a_compiler_that_fails_is_no_fault_of_the_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "plan", lambda torch: bridge.Plan(("/bin/false",), "", "bridge.so"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(bridge.BridgeError, match="/bin/false failed"):
            bridge.build_somewhere(TORCH)
    monkeypatch.setattr(bridge, "plan", lambda torch: bridge.Plan((str(cache.parent / "none"),), "", "bridge.so"))
    with pytest.raises(bridge.BridgeError, match="cannot be started: No such file"):
        bridge.build_somewhere(TORCH)
