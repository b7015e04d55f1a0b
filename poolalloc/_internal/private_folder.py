"""A folder of files that this process runs, which nobody but its user may be able to change.

Whoever can write into the folder, or to a file in it, would run code as this user. So folder and files must belong to
the user or to root and be writable by nobody else, are opened without following links, and are used by descriptor: what
was checked is what is used, whatever happens to the path meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poolalloc.errors import PoolallocError


class UntrustedError(PoolallocError, PermissionError):
    """A folder or file that others may change; the text names it and says why it is not used."""


class PrivateFolder:
    """An open folder. Made, for the user alone, if it is not there.

    Raises:
        UntrustedError: others may change it.
        OSError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process may make it at the same time
                folder.mkdir(mode=0o700)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check(os.fstat(self._descriptor), path)
        except UntrustedError:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder; files that were opened stay open."""
        os.close(self._descriptor)

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, name: str) -> int | None:
        """Return a descriptor for reading a file, None if there is no such file.

        Raises:
            UntrustedError: others may change it.
        """
        try:
            descriptor = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            check(os.fstat(descriptor), self.path / name)
        except UntrustedError:
            os.close(descriptor)
            raise
        return descriptor

    def put(self, name: str, source: Path) -> None:
        """Copy a file into the folder, whole or not at all, in the place of one that may be there."""
        unfinished = f"{name}.{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=self._descriptor)
        try:
            with (
                source.open("rb") as whole,
                open(self._open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as copy,
            ):
                shutil.copyfileobj(whole, copy)
            os.replace(unfinished, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=self._descriptor)
            raise

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock file of the folder: one process goes on, the others wait.

        Raises:
            UntrustedError: others may change it.
        """
        descriptor = self._open(name, os.O_RDWR | os.O_CREAT)
        try:
            check(os.fstat(descriptor), self.path / name)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open(self, name: str, flags: int) -> int:
        # O_NONBLOCK: a pipe under the file's name must not be waited for.
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(name, flags, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UntrustedError(f"{self.path / name} is a link") from error
            raise


def is_settled(path: Path, descriptor: int) -> bool:
    """Whether an open file stands at this path, which has no links, and only the user and root could change that.

    Then no folder on the way belongs to somebody else, and each that others may write to has the sticky bit, as /tmp.
    """
    try:
        if not os.path.samestat(os.lstat(path), os.fstat(descriptor)) or path != path.resolve():
            return False
        for folder in path.parents:
            check(os.stat(folder), folder, sticky=True)
    except OSError:  # UntrustedError is one
        return False
    return True


def check(found: os.stat_result, path: Path, *, sticky: bool = False) -> None:
    """Raise UntrustedError unless this folder or file can be changed by the user and root alone.

    With `sticky`, others may add files of their own, as in /tmp.
    """
    user = os.geteuid()
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise UntrustedError(f"{path} is neither a file nor a folder")
    if found.st_uid not in (user, 0):
        raise UntrustedError(f"{path} belongs to another user (number {found.st_uid}; this process is number {user})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky and found.st_mode & stat.S_ISVTX):
        raise UntrustedError(f"others may write to {path} (mode {stat.S_IMODE(found.st_mode):o}); chmod go-w ends that")
