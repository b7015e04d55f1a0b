#!/usr/bin/env python3
"""Writes the parts of the manual that follow from the code: docs/reference.md and docs/commands.md.

    python tools/generate_manual.py            # after a public name, a docstring or an option of a command has changed
    python tools/generate_manual.py --check    # what `make lint` does

The reference lists what the modules name in `__all__`, each with the first sentence of its docstring. The commands are
what `poolalloc COMMAND --help` shows.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

REFERENCE = ROOT / "docs/reference.md"
COMMANDS = ROOT / "docs/commands.md"
TOOL = "tools/generate_manual.py"
ROOMS = ("poolalloc", "poolalloc.analysis", "poolalloc.sim", "poolalloc.bench", "poolalloc.cli")


def public_modules() -> list[str]:
    """The modules that users import: those of each room's first level, without an underscore; rooms come first."""
    found: list[str] = []
    for room in ROOMS:
        package = importlib.import_module(room)
        found.append(room)
        if room in ("poolalloc.sim", "poolalloc.cli"):  # all that is public is in the package itself
            continue
        names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))
        found += [f"{room}.{name}" for name in names if _is_public(f"{room}.{name}")]
    return found


def _is_public(module: str) -> bool:
    """Whether the module's file says what is public in it. It is not imported: one acts when it is."""
    file = _file_of(module)
    return module not in ROOMS and file.is_file() and "\n__all__" in file.read_text()


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    found = re.match(r".*?\.(?=\s|$)", paragraph)
    return (found[0] if found else paragraph).rstrip(":.")


def docstring_of(module: str) -> str | None:
    """The docstring in the module's file."""
    return ast.get_docstring(ast.parse(_file_of(module).read_text()))


def constants_of(module: ModuleType) -> dict[str, str]:
    """The texts under the module's assignments."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(module)).body
    for node, after in itertools.pairwise(body):
        names = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found |= {name.id: after.value.value for name in names if isinstance(name, ast.Name)}
    return found


def rows_of(name: str) -> list[tuple[str, str]]:
    """The public names of a module, and what each is."""
    if name == "poolalloc.auto":
        return []
    module = importlib.import_module(name)
    constants = constants_of(module)
    rows = []
    for public in sorted(module.__all__, key=str.lower):
        value = getattr(module, public)
        if isinstance(value, ModuleType):
            continue
        documented = inspect.isclass(value) or inspect.isroutine(value)
        home = sys.modules.get(getattr(value, "__module__", "") or "", module)
        text = value.__doc__ if documented else constants.get(public) or constants_of(home).get(public, "")
        if not text and isinstance(value, (int, float, str)):
            text = f"`{value!r}`"
        rows.append((f"{public}()" if inspect.isroutine(value) else public, first_sentence(text)))
    return rows


def reference() -> str:
    """The text of docs/reference.md."""
    lines = [
        "# Reference: the public names",
        "",
        f"<!-- written by {TOOL}; do not edit it here -->",
        "",
        "What Python programs import, module by module, each with the first sentence of its docstring; `help()` shows",
        "all of it. What is in no list here may change without notice. The commands are in [commands.md](commands.md).",
    ]
    for name in public_modules():
        level = "##" if name in ROOMS else "###"
        lines += ["", f"{level} `{name}`", "", first_sentence(docstring_of(name)).rstrip(".") + "."]
        if rows := rows_of(name):
            lines += ["", "| name | what it is |", "| --- | --- |"]
            lines += [f"| `{public}` | {_cell(text)} |" for public, text in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands() -> str:
    """The text of docs/commands.md."""
    import typer.main

    from poolalloc import cli

    group: Any = typer.main.get_command(cli.make_app(list(cli.COMMANDS)))
    lines = [
        "# The commands",
        "",
        f"<!-- written by {TOOL}; do not edit it here -->",
        "",
        "What `poolalloc COMMAND --help` shows, command by command. The same rules hold for all of them:",
        "",
        *cli.RULES,
    ]
    for purpose, names in cli.GROUPS.items():
        lines += ["", f"## {purpose}"]
        for name in names:
            lines += ["", *_command(name, group.commands[name])]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    options = [one for one in command.params if one.param_type_name == "option"]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(["poolalloc", name, "[OPTIONS]" if options else "", *(_metavar(one) for one in arguments)])
    lines = [f"### `poolalloc {name}`", "", inspect.cleandoc(command.callback.__doc__ or ""), "", f"    {usage}"]
    rows = [(f"`{_metavar(one)}`", one.help or "") for one in arguments]
    rows += [(_spelling(one), _help_of(one)) for one in options]
    return [*lines, "", "| | |", "| --- | --- |", *(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)]


def _metavar(one: Any) -> str:
    return str(one.metavar or one.name.upper())


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} `{option.metavar}`"


def _help_of(option: Any) -> str:
    default = option.default
    text = str(option.help or "")
    if option.required:
        return f"{text} Required."
    shown = default is not None and not option.is_flag and not callable(default) and default not in ((), [])
    return (
        f"{text} Default: {default:g}."
        if shown and isinstance(default, float)
        else (f"{text} Default: {default}." if shown and "Default:" not in text else text)
    )


def main(arguments: list[str]) -> int:
    """Write both pages, or compare them with --check. Returns the exit code."""
    if arguments not in ([], ["--check"]):
        raise SystemExit(f"usage: {Path(TOOL).name} [--check]")
    stale = False
    for path, text in {REFERENCE: reference(), COMMANDS: commands()}.items():
        if path.exists() and path.read_text() == text:
            continue
        if arguments:
            print(f"{path.relative_to(ROOT)} does not follow the code; run: python {TOOL}")
            stale = True
        else:
            path.write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
