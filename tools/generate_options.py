#!/usr/bin/env python3
"""Writes what follows from options.def of csrc/core: poolalloc/_internal/options.py and the table in docs/options.md.

With --check it writes nothing, and exits with 1 and one line if a file is not what it would write.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc/core/options/options.def"
MODULE = ROOT / "poolalloc/_internal/options.py"
MANUAL = ROOT / "docs/options.md"
BEGIN = "<!-- begin: written by tools/generate_options.py from csrc/core/options/options.def -->"
END = "<!-- end -->"
PYTHON_TYPES = {
    "bytes": "int",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "choice": "str",
    "text": "str",
    "bins": "tuple[ExactBin, ...]",
}
ARGUMENT_TYPES = {**PYTHON_TYPES, "bytes": "int | str", "bins": "Iterable[ExactBin | Mapping[str, Any]] | str"}
UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Row(NamedTuple):
    """One OPTION(...) of the table."""

    name: str
    type: str
    default: float | str | tuple[()]
    minimum: float
    maximum: float
    unit: str
    help: str


def read_table(text: str) -> list[Row]:
    """The rows of options.def. Exits with one line if one of them makes no sense."""
    code = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    string = r'(?:"(?:[^"\\]|\\.)*"\s*)+'
    value = r"\s*([^,()\s]+)\s*,"
    pattern = re.compile(rf"\bOPTION\((\s*\w+)\s*,\s*(\w+)\s*,{value}{value}{value}\s*({string}),\s*({string})\)")
    rows = [_row(match) for match in pattern.finditer(code)]
    if len(rows) != len(re.findall(r"\bOPTION\b", code)):
        raise SystemExit(f"{TABLE.name}: an OPTION is not (name, type, default, minimum, maximum, unit, help)")
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise SystemExit(f"{TABLE.name}: {name} appears more than once")
    return rows


def _row(match: re.Match[str]) -> Row:
    name, kind = match[1].strip(), match[2]
    if kind not in PYTHON_TYPES:
        raise SystemExit(f"{TABLE.name}: {name} has type {kind}; allowed: {', '.join(PYTHON_TYPES)}")
    if kind == "choice":
        return _choice(name, match[3], match[4] + match[5], ast.literal_eval(match[6]), ast.literal_eval(match[7]))
    if kind == "text":
        return _text(name, match[3], match[4] + match[5], ast.literal_eval(match[6]), ast.literal_eval(match[7]))
    if kind == "bins":
        return _bins(name, match[3], match[4] + match[5], ast.literal_eval(match[6]), ast.literal_eval(match[7]))
    default, minimum, maximum = (_number(name, kind, match[group]) for group in (3, 4, 5))
    if not minimum <= default <= maximum:
        raise SystemExit(f"{TABLE.name}: the default of {name}, {default}, is not between {minimum} and {maximum}")
    return Row(name, kind, default, minimum, maximum, ast.literal_eval(match[6]), ast.literal_eval(match[7]))


def _choice(name: str, default: str, bounds: str, words: str, help_text: str) -> Row:
    known = words.split(" | ")
    if default not in [json.dumps(word) for word in known]:
        raise SystemExit(f"{TABLE.name}: the default of {name}, {default}, is none of {words}")
    if bounds != "00" or len(set(known)) < max(2, len(known)) or not all(word.isidentifier() for word in known):
        raise SystemExit(f"{TABLE.name}: the choice {name} needs bounds of 0, and words with ' | ' between them")
    return Row(name, "choice", ast.literal_eval(default), 0, 0, words, help_text)


def _text(name: str, default: str, bounds: str, what: str, help_text: str) -> Row:
    if default != '""' or bounds != "00" or not what:
        raise SystemExit(f'{TABLE.name}: the text {name} needs a default of "", bounds of 0, and a unit that says what')
    return Row(name, "text", "", 0, 0, what, help_text)


def _bins(name: str, default: str, bounds: str, form: str, help_text: str) -> Row:
    if default != "none" or bounds != "00" or not form:
        raise SystemExit(
            f"{TABLE.name}: the bins {name} need a default of none, bounds of 0, and a unit with their form"
        )
    return Row(name, "bins", (), 0, 0, form, help_text)


def _number(name: str, kind: str, text: str) -> float:
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, bool) or not isinstance(value, float if kind == "number" else int) or kind == "boolean":
        raise SystemExit(f"{TABLE.name}: {text} of {name} is not written as a {kind}")
    # Core compares through doubles, so a bound must be one.
    if int(float(value)) != int(value):
        raise SystemExit(f"{TABLE.name}: {text} of {name} is no exact double")
    return value


def show(row: Row, value: float | str | tuple[()]) -> str:
    """A value as the manual writes it: `256 KiB`, `0.5`, `true`."""
    if isinstance(value, (str, tuple)):
        return str(value or "none")
    if row.type == "boolean":
        return "true" if value else "false"
    if row.type == "bytes":
        for unit, scale in UNITS:
            if value and value % scale == 0:
                return f"{int(value) // scale} {unit}"
        return f"{int(value)} B"
    return f"{value:g}"


def allowed(row: Row) -> str:
    """The range as the manual writes it."""
    if row.type == "choice":
        return _either(row.unit.split(" | "))
    if row.type == "text":
        return f"{row.unit} without a comma"
    if row.type == "bins":
        return f"{row.unit}, with + between"
    return "true or false" if row.type == "boolean" else f"{show(row, row.minimum)} to {show(row, row.maximum)}"


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def python_module(rows: list[Row]) -> str:
    """The text of poolalloc/_internal/options.py."""
    lines = [
        '"""The options, written by tools/generate_options.py from options.def of csrc/core. Do not edit it here."""',
        "",
        "from __future__ import annotations",
        "",
        "from collections.abc import Iterable, Mapping",
        "from dataclasses import dataclass",
        "from typing import Any, NamedTuple",
        "",
        "from poolalloc._internal.exact_bins import ExactBin",
        "",
        "",
        "class Option(NamedTuple):",
        '    """One row of the table. Sizes are in bytes; the unit of a choice is its words, `a | b`."""',
        "",
        "    name: str",
        "    type: str",
        "    default: int | float | bool | str | tuple[ExactBin, ...]",
        "    minimum: int | float | bool",
        "    maximum: int | float | bool",
        "    unit: str",
        "    help: str",
        "",
        "",
        "OPTIONS = (",
    ]
    for row in rows:
        lines += ["    Option("]
        lines += [f"        {_literal(value)}," for value in row[:-1]]
        lines += [*_wrapped_string(row.help, 8), "    ),"]
    lines += [
        ")",
        "",
        "",
        "@dataclass(frozen=True, init=False)",
        "class Options:",
        '    """The options as fields, with their defaults. Sizes are in bytes."""',
        "",
    ]
    for row in rows:
        lines += [f"    {row.name}: {PYTHON_TYPES[row.type]} = {_literal(row.default)}"]
        unit = f" ({row.unit})" if row.type in ("integer", "number") else ""
        lines += _docstring(f"{row.help} Allowed: {allowed(row)}{unit}.", 4)
    lines += ["", "    def __init__(", "        self,", "        *,"]
    lines += [f"        {row.name}: {ARGUMENT_TYPES[row.type]} = {_literal(row.default)}," for row in rows]
    lines += ["    ) -> None:", "        self._set(", "            {"]
    lines += [f'                "{row.name}": {row.name},' for row in rows]
    lines += [
        "            }",
        "        )",
        "",
        "    def _set(self, values: Mapping[str, object]) -> None:",
        "        for name, value in values.items():",
        "            object.__setattr__(self, name, value)",
        "",
    ]
    return "\n".join(lines)


def _literal(value: float | str | tuple[()]) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _docstring(text: str, indent: int) -> list[str]:
    lines = textwrap.wrap(f'"""{text}', 120 - indent)
    if len(lines) == 1 and len(lines[0]) + 3 <= 120 - indent:
        return [" " * indent + lines[0] + '"""']
    return [" " * indent + line for line in [*lines, '"""']]


def _wrapped_string(text: str, indent: int) -> list[str]:
    whole = " " * indent + json.dumps(text) + ","
    if len(whole) <= 120:
        return [whole]
    pieces = textwrap.wrap(text, 116 - indent - 4)
    pieces = [piece + " " for piece in pieces[:-1]] + pieces[-1:]
    return [" " * indent + "(", *(" " * (indent + 4) + json.dumps(piece) for piece in pieces), " " * indent + "),"]


def manual_table(rows: list[Row]) -> str:
    """The generated part of docs/options.md."""
    lines = ["| option | type | default | allowed | what it does |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        kind = f"{row.type}, {row.unit}" if row.type in ("integer", "number") else row.type
        lines.append(f"| `{row.name}` | {kind} | {show(row, row.default)} | {allowed(row)} | {row.help} |")
    return "\n".join(lines)


def manual(rows: list[Row], text: str) -> str:
    """docs/options.md with its table replaced. Exits with one line if the markers are missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{MANUAL.name}: the lines {BEGIN} and {END} must each appear once")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{manual_table(rows)}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write both files, or compare them with --check. Returns the exit code."""
    if arguments not in ([], ["--check"]):
        raise SystemExit("usage: generate_options.py [--check]")
    rows = read_table(TABLE.read_text())
    outputs = {MODULE: python_module(rows), MANUAL: manual(rows, MANUAL.read_text())}
    for path, text in outputs.items():
        if path.exists() and path.read_text() == text:
            continue
        if arguments:
            stale = f"{path.relative_to(ROOT)} does not follow {TABLE.relative_to(ROOT)}"
            print(f"{stale}; run: python tools/generate_options.py")
            return 1
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
