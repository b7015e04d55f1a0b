"""What every command shares: errors of one line with exit code 2, and sizes. Not for any command's work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import typer

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
    print("poolalloc: " + " ".join(message.split()), file=sys.stderr, flush=True)


def size_option(option: str, text: str) -> int:
    """Return the bytes that `text`, the value given to `option`, stands for; ends the command where it is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        fail(f"{option}: {error}")
