"""What every command shares: errors of one line with exit code 2, and sizes. Not for any command's work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from poolalloc._internal.text import harmless
from poolalloc.sizes import parse_size

BAD_INPUT = 2
"""The exit code for input that a command cannot work with."""


def config_help(begin: str = "") -> str:
    """Return the help of --config: what a configuration may be, with the profiles there are."""
    folder = Path(__file__).parents[1] / "profiles"
    names = ", ".join(sorted(path.stem for path in folder.glob("*.toml")))
    return f"{begin}A profile ({names}) or a TOML file with options."


def fail(message: str) -> NoReturn:
    """End the command because of bad input: `message` as one line on stderr, exit code 2."""
    print_error(message)
    raise typer.Exit(BAD_INPUT)


def print_error(message: str) -> None:
    """Print `message` as the command line's one line of complaint."""
    print("poolalloc: " + harmless(" ".join(message.split())), file=sys.stderr, flush=True)


def count_of(number: int, what: str) -> str:
    """Return "1 device", "2 devices": a number of things by the name of one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def require_writable(option: str, path: Path | None, *, make_folder: bool = False) -> None:
    """End the command, before it works for long, where the file given to `option` could not be written at its end."""
    if path is None:
        return
    folder = path.absolute().parent
    if make_folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"{option}: {path}: {error.strerror}")
    if not folder.is_dir():
        fail(f"{option}: {path}: there is no folder {folder}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        fail(f"{option}: {path} cannot be written")


def write_file(path: Path, write: Callable[[Path], None], *, silent: bool = False) -> None:
    """Have the file written, and say so unless `silent`; ends the command where it cannot be."""
    try:
        write(path)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except ValueError as error:  # a picture of an unknown kind
        fail(f"{path}: {error}")
    if not silent:
        print(f"wrote {path}")


def size_option(option: str, text: str) -> int:
    """Return the bytes that `text`, the value given to `option`, stands for; ends the command where it is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        fail(f"{option}: {error}")
