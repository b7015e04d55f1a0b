"""The folder of built bridges: what others may change is refused by name, and links are not followed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc._internal import private_folder
from poolalloc._internal.private_folder import PrivateFolder, UntrustedError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def put(folder: Path, name: str = "library.so", text: str = "code") -> Path:
    with tempfile.NamedTemporaryFile("w") as source:
        source.write(text)
        source.flush()
        with PrivateFolder(folder) as private:
            private.put(name, Path(source.name))
    return folder / name


def test_what_it_makes_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = put(tmp_path / "cache" / "poolalloc")
        with PrivateFolder(file.parent) as folder, folder.lock("lock"):
            pass
    finally:
        os.umask(before)
    assert [mode(path) for path in (tmp_path / "cache", file.parent)] == [0o700, 0o700]
    assert [mode(path) for path in (file, file.parent / "lock")] == [0o600, 0o600]
    assert sorted(path.name for path in file.parent.iterdir()) == ["library.so", "lock"]


def test_a_file_is_read_by_descriptor(tmp_path: Path) -> None:
    """What was checked is what is read, whatever the path leads to by then."""
    file = put(tmp_path / "cache")
    with PrivateFolder(file.parent) as folder:
        assert folder.open("other.so") is None
        descriptor = folder.open("library.so")
        assert descriptor is not None
        (tmp_path / "cache").rename(tmp_path / "moved")
        put(tmp_path / "cache", text="another's")
        with os.fdopen(descriptor) as read:
            assert read.read() == "code"
        again = folder.open("library.so")
        assert again is not None
        with os.fdopen(again) as read:
            assert read.read() == "code"


def others_may_write_to_the_folder(folder: Path) -> str:
    folder.chmod(0o777)
    return f"others may write to {folder} "


def the_group_may_write_to_the_folder(folder: Path) -> str:
    folder.chmod(0o770)
    return f"others may write to {folder} "


def others_may_write_to_the_library(folder: Path) -> str:
    (folder / "library.so").chmod(0o666)
    return f"others may write to {folder / 'library.so'} "


def the_library_is_a_link(folder: Path) -> str:
    (folder / "library.so").rename(folder / "elsewhere.so")
    (folder / "library.so").symlink_to("elsewhere.so")
    return f"{folder / 'library.so'} is a link"


def the_library_is_a_pipe(folder: Path) -> str:
    (folder / "library.so").unlink()
    os.mkfifo(folder / "library.so")
    return "neither a file nor a folder"


def the_lock_is_a_link(folder: Path) -> str:
    (folder / "lock").symlink_to(folder.parent / "victim")
    return f"{folder / 'lock'} is a link"


def the_lock_is_a_link_to_a_file(folder: Path) -> str:
    (folder.parent / "victim").write_text("precious")
    return the_lock_is_a_link(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        others_may_write_to_the_folder,
        the_group_may_write_to_the_folder,
        others_may_write_to_the_library,
        the_library_is_a_link,
        the_library_is_a_pipe,
        the_lock_is_a_link,
        the_lock_is_a_link_to_a_file,
    ],
)
def test_what_others_may_change_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    folder = put(tmp_path / "cache").parent
    text = spoil(folder)
    victim = tmp_path / "victim"
    before = victim.read_text() if victim.exists() else None
    with pytest.raises(UntrustedError) as refused, PrivateFolder(folder) as private, private.lock("lock"):
        private.open("library.so")
    assert text in str(refused.value)
    assert (victim.read_text() if victim.exists() else None) == before


def test_files_of_other_users_are_refused_and_those_of_root_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = put(tmp_path / "cache").stat()
    monkeypatch.setattr(os, "geteuid", lambda: found.st_uid + 1000)
    fields = list(found)
    for owner, fine in ((found.st_uid + 1000, True), (0, True), (found.st_uid + 1, False)):
        fields[stat.ST_UID] = owner
        if fine:
            private_folder.check(os.stat_result(fields), tmp_path)
        else:
            with pytest.raises(UntrustedError, match=f"{tmp_path} belongs to another user .number {owner};"):
                private_folder.check(os.stat_result(fields), tmp_path)


def test_a_link_planted_under_the_name_of_an_unfinished_copy_is_not_followed(tmp_path: Path) -> None:
    folder = put(tmp_path / "cache").parent
    (tmp_path / "victim").write_text("precious")
    (folder / f"library.so.{os.getpid()}").symlink_to(tmp_path / "victim")
    assert put(folder, text="new").read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PrivateFolder(tmp_path / "file" / "cache")
