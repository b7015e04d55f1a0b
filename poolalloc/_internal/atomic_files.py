"""Files that are written whole or not at all: what stood there stays until all of the new one is on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a file to write, which takes the place of `path` when the block ends without an error.

    A link stays and its target is replaced. What is no regular file (a device, a pipe) is written to as it is: replaced
    it must never be. So is a file in a folder where none can be made.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    exists = os.path.exists(path)
    if exists and not (target.is_file() and os.access(target.parent, os.W_OK)):
        yield Path(path)
        return
    partial = target.with_name(f".{os.getpid()}.partial.{target.name}")  # the ending tells some writers the format
    try:
        yield partial
        if exists:
            shutil.copymode(target, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text, in UTF-8, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")
