"""The `poolalloc` command. Each command is a module of this package with a function `register(app)`.

A new command takes a line in COMMANDS, its name in GROUPS, and its file. Only the file of the command that was asked
for is imported, so a slow import in one costs the others nothing. `common` has what all of them share, `tables` and
`progress` what they show; `live_blocks` and `driver_time` print what several commands print. The package may import
every other.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from poolalloc._internal.version import __version__
from poolalloc.cli.common import BAD_INPUT, begin, print_error

__all__ = ["COMMANDS", "GROUPS", "RULES", "main", "make_app", "run"]

RULES = (
    "- `--json` prints one JSON document on standard output, and nothing else there.",
    "- `-o`, `--output` names the file that the result is written to; `--html` a page, `--png` a picture.",
    "- Times are written `500ms`, `60s`, `2min` or `1h`; sizes `24GiB`, `512MB` or as a number of bytes.",
    "- `--against` names allocators, `--gpu` the card to simulate, `--device` where it runs: `simulated` or `real`.",
    "- What goes wrong is one line on standard error that begins with `poolalloc: COMMAND:`.",
    "- The exit code is 0; 1 where the command ran and its answer is no; 2 for bad input. `run` and `sim` end with the",
    "  exit code of their program.",
)
"""What holds for every command, as the manual says it."""

COMMANDS = {
    "run": "poolalloc.cli.run_",
    "sim": "poolalloc.cli.sim",
    "bench": "poolalloc.cli.bench",
    "import": "poolalloc.cli.import_",
    "replay": "poolalloc.cli.replay",
    "tune": "poolalloc.cli.tune",
    "plan": "poolalloc.cli.plan",
    "fit": "poolalloc.cli.fit",
    "report": "poolalloc.cli.report",
    "top": "poolalloc.cli.top",
    "doctor": "poolalloc.cli.doctor",
    "build-bridge": "poolalloc.cli.build_bridge",
}
"""By the name of each command, its module."""

GROUPS = {
    "Run a program": ("run", "sim"),
    "Compare allocators": ("bench",),
    "Recordings": ("import", "replay", "tune", "plan", "fit", "report"),
    "This machine": ("top", "doctor", "build-bridge"),
}
"""What commands are for, as `poolalloc --help` shows them."""

# typer carries its own copy of click in newer versions and depends on click in older ones; this finds either.
_ClickException: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException" and issubclass(base, Exception)
)


def make_app(commands: list[str]) -> typer.Typer:
    """Return the command line with the named commands in it."""
    app = typer.Typer(
        name="poolalloc", add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
    )
    app.callback(invoke_without_command=True)(_poolalloc)
    for command in commands:
        import_module(COMMANDS[command]).register(app)
        app.registered_commands[-1].rich_help_panel = next(group for group, named in GROUPS.items() if command in named)
    return app


def _poolalloc(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """A caching allocator for PyTorch's CUDA memory that wastes almost none of it.

    Example: poolalloc sim -- python train.py
    """
    if version:
        print(f"poolalloc {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: list[str]) -> int:
    """Run the command line `poolalloc ARGUMENTS...` and return its exit code."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    begin(asked if asked in COMMANDS else "")
    app = make_app([asked] if asked in COMMANDS else list(COMMANDS))
    try:
        result = app(args=arguments, prog_name="poolalloc", standalone_mode=False)
    except _ClickException as error:
        print_error(_one_line(error))
        return BAD_INPUT
    except typer.Abort:
        return 130
    return result if isinstance(result, int) else 0


def _one_line(error: Exception) -> str:
    """Return what click has to say, and where the command's help is."""
    text = str(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "poolalloc")
    separator = "" if text.endswith((".", "?", "!", ")")) else "."
    return f"{text}{separator} See {command} --help"


def main() -> None:
    """Run the command line with this process's arguments and exit with its code."""
    sys.exit(run(sys.argv[1:]))
