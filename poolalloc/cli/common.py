"""What every command shares: one form of errors, exit codes, times, sizes, and files that are written at the end.

The rules that all commands keep stand in cli/__init__.py (RULES). Not for any command's work.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from poolalloc._internal.text import harmless
from poolalloc.sizes import parse_size

NO = 1
"""The exit code of a command that ran, and whose answer is no."""
BAD_INPUT = 2
"""The exit code for input that a command cannot work with."""

_command = ""

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else there.")
]
"""The option --json, which is the same for all commands."""


def begin(command: str) -> None:
    """Remember which command runs, for what it says of itself."""
    global _command  # noqa: PLW0603
    _command = command


def config_help(begin: str = "") -> str:
    """Return the help of --config: what a configuration may be, with the profiles there are."""
    folder = Path(__file__).parents[1] / "profiles"
    names = ", ".join(sorted(path.stem for path in folder.glob("*.toml")))
    return f"{begin}A profile ({names}) or a TOML file with options."


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """End the command: `message` as one line on stderr, and an exit code, that of bad input if none is given."""
    print_error(message)
    raise typer.Exit(code)


def print_error(message: str) -> None:
    """Print `message` as one line on stderr that begins with the command."""
    before = f"poolalloc: {_command}: " if _command else "poolalloc: "
    print(before + harmless(" ".join(message.split())), file=sys.stderr, flush=True)


def print_json(document: Mapping[str, object] | Sequence[object]) -> None:
    """Print the document of --json."""
    print(json.dumps(document, indent=1))


def count_of(number: int, what: str) -> str:
    """Return "1 device", "2 devices": a number of things by the name of one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def require_writable(
    outputs: Mapping[str, Path | None], *, inputs: Sequence[Path] = (), make_folders: bool = False
) -> None:
    """End the command, before it works for long, where a file that an option names could not be written at its end.

    Args:
        outputs: by option, the file it names, if it was given.
        inputs: files that no output may take the place of.
        make_folders: make folders that are missing.
    """
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        _require_writable(option, path, make_folder=make_folders)
        real = Path(os.path.realpath(path))
        if real in taken and real.is_file():
            fail(f"{option}: {path} is what {taken[real]} writes")
        for read in inputs:
            if path.exists() and read.exists() and path.samefile(read):
                fail(f"{option}: {path} is what is read; name another file")
        taken[real] = option


def _require_writable(option: str, path: Path, *, make_folder: bool) -> None:
    folder = path.absolute().parent
    if make_folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"{option}: {path}: {error.strerror}")
    if not folder.is_dir():
        fail(f"{option}: {path}: there is no folder {folder}")
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        fail(f"{option}: {path} cannot be written: {error.strerror}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        fail(f"{option}: {path} cannot be written")
    if not path.exists():
        # root may write everywhere by its rights, but not to /proc, to a device that is full, or to a name too long.
        partial = folder / f".{os.getpid()}.partial.{path.name}"
        try:
            partial.touch()
            partial.unlink()
        except OSError as error:
            fail(f"{option}: {path} cannot be written: {error.strerror}")


def require_picture(option: str, path: Path | None) -> None:
    """End the command where matplotlib is there and knows no picture with the ending of this file."""
    if path is None:
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        return  # said elsewhere, with what to install
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in kinds:
        fail(f"{option}: {path}: a picture ends in one of {', '.join(f'.{kind}' for kind in kinds)}")


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


def write_json(path: Path, document: Mapping[str, object], *, silent: bool = False) -> None:
    """Write a document as write_file() does."""
    from poolalloc._internal.atomic_files import write_text

    text = json.dumps(document, indent=1) + "\n"
    write_file(path, lambda target: write_text(target, text), silent=silent)


def size_option(option: str, text: str) -> int:
    """Return the bytes that `text`, the value given to `option`, stands for; ends the command where it is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        fail(f"{option}: {error}")


_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*")


def time_option(option: str, text: str, *, least: float = 0.0) -> float:
    """Return the seconds that `text`, the value given to `option`, stands for; ends the command where it is no time.

    `least` is the shortest time that is allowed; 0 is none itself.
    """
    match = _TIME.fullmatch(text.lower())
    if match is None or match[2] not in _UNITS:
        fail(f'{option}: "{text}" is no time; write it as 500ms, 60s, 2min or 1h')
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds <= 0 or not math.isfinite(seconds):
        fail(f'{option}: "{text}" must be more than 0 seconds')
    if seconds < least:
        fail(f'{option}: "{text}" is too short; the least is {least:g}s')
    return seconds


def allocator_names(names: Sequence[str]) -> list[str]:
    """Return the allocators that --against names, each once: several in one value too, but for torch's settings."""
    found: list[str] = []
    for value in names:
        found += [value.strip()] if ":" in value else [name.strip() for name in value.split(",")]
    return [name for name in dict.fromkeys(found) if name]
