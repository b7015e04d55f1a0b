"""Archives of numpy arrays (.npz), written whole or not at all, and read with no trust in what they hold.

What the arrays mean is for those who read and write them: trace/files.py and plan_file.py.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poolalloc._internal.atomic_files import whole_file
from poolalloc._internal.text import printable
from poolalloc.errors import PoolallocError

MAGIC = b"PK\x03\x04"
"""What every archive begins with."""
_WHEN = (1980, 1, 1, 0, 0, 0)  # the date of every member: the same arrays make the same file


class Kind(NamedTuple):
    """A kind of archive, as its header names it."""

    format: str
    version: int
    keys: tuple[str, ...]
    """Of the header."""
    error: type[PoolallocError]
    """What is raised for a file that is not what it must be, with one line that says why."""
    another: str
    """What to say of a file of another kind."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the arrays. The file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    # Level 1: events shrink to an eighth or less, at several times the speed of the default level.
    with (
        whole_file(path) as target,
        open(target, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _WHEN)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=array.nbytes > 1 << 30) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), (1, 0), allow_pickle=False)


@contextmanager
def reading(path: str | os.PathLike[str], error: type[PoolallocError]) -> Iterator[Any]:
    """Open a file; whatever goes wrong with it inside becomes `error`, in one line that begins with its name."""
    name = os.path.basename(os.fspath(path))
    try:
        with open(path, "rb") as file:
            yield file
    except error as problem:
        raise error(printable(f"{name}: {problem}")) from None
    except OSError as problem:
        raise error(f"{name}: {problem.strerror or problem}") from None
    except MemoryError:
        raise error(f"{name}: it does not fit into this machine's memory") from None


@contextmanager
def opened(file: Any, error: type[PoolallocError]) -> Iterator[zipfile.ZipFile]:
    """Open the archive in a file; damage that shows inside becomes `error`."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as problem:
        if isinstance(problem, error):
            raise
        raise error(f"it is damaged or was cut off: {' '.join(str(problem).split())}") from None


def read_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], kind: Kind, columns: int = 0
) -> npt.NDArray[Any]:
    """Return an array that must be of this type, and of `columns` columns (0: it has one dimension).

    Nothing is unpickled, and its size is believed only as far as there are bytes for it.
    """
    error = kind.error
    with archive.open(f"{name}.npy") as stream:
        head = io.BytesIO(stream.read(4096))
        try:
            numpys = np.lib.format.read_magic(head)
            if numpys != (1, 0):
                raise error(f"array {name} is of numpy's format {numpys[0]}.{numpys[1]}; this reader knows 1.0")
            shape, fortran, found = np.lib.format.read_array_header_1_0(head, max_header_size=4096)
        except error:
            raise
        except Exception as problem:  # numpy evaluates the header as Python and lets whatever happens there out
            raise error(f"array {name} has no header of numpy's: {' '.join(str(problem).split())[:120]}") from None
        if found != dtype or fortran or len(shape) != (2 if columns else 1) or (columns and shape[1] != columns):
            raise error(f"array {name} is of the kind {found}, shape {shape}; version {kind.version} has {dtype}")
        data = head.read() + stream.read()
    count = int(np.prod(shape, dtype=object))
    if len(data) != count * dtype.itemsize:
        raise error(f"array {name} has {len(data)} bytes where {count} entries need {count * dtype.itemsize}")
    return np.frombuffer(data, dtype).reshape(shape)


def read_header(array: npt.NDArray[Any], kind: Kind) -> dict[str, Any]:
    """Return the table that a header of bytes holds, with just the keys of the kind."""
    try:
        header = json.loads(array.tobytes().decode("utf-8"))
    except (ValueError, RecursionError):
        raise kind.error("its header is no JSON text") from None
    if not isinstance(header, dict) or header.get("format") != kind.format:
        raise kind.error(kind.another)
    if header.get("version") != kind.version:
        raise kind.error(f"it is of version {header.get('version')!r}; this poolalloc reads version {kind.version}")
    if sorted(header) != sorted(kind.keys):
        odd = sorted(set(header) ^ set(kind.keys))
        raise kind.error(f"its header is not that of version {kind.version}: {', '.join(map(repr, odd))}")
    return header


def is_whole(value: object, limit: int) -> bool:
    """Whether it is a whole number from 0 up to, not including, `limit`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit
