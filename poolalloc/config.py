"""The options of an allocator, and the forms they come in: TOML files, the environment, `key:value` texts, mappings.

The core reads `key:value` texts too (csrc/core/options), and both accept and refuse the same ones. What there is to set
is in csrc/core/options/options.def alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from numbers import Real
from typing import Any, cast

from poolalloc._internal.exact_bins import ALLOWED as ALLOWED_BINS
from poolalloc._internal.exact_bins import ExactBin, bins_of, text_of
from poolalloc._internal.exact_bins import refusal as bin_refusal
from poolalloc._internal.nearest import nearest
from poolalloc._internal.options import OPTIONS, Option, Options
from poolalloc.errors import ConfigError
from poolalloc.sizes import exact_size, format_size, parse_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["OPTIONS", "Config", "ExactBin", "Option", "describe_profiles", "profiles"]

PAGE_BYTES = 2 << 20
_TABLE = {option.name: option for option in OPTIONS}
_SPACE = " \t\n\r\f\v"
_BETWEEN_WORDS = " | "  # in the unit of a choice
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, init=False)
class Config(Options):
    """The options of an allocator, checked. Sizes are in bytes, and may be given as text such as `"2 MiB"`.

    Raises:
        ConfigError: a value is out of range or of the wrong kind, or two contradict each other.
    """

    def _set(self, values: Mapping[str, object]) -> None:
        checked = {name: _check(_TABLE[name], value) for name, value in values.items()}
        _check_together(checked)
        super()._set(checked)

    @classmethod
    def load(
        cls,
        spec: Config | Mapping[str, object] | str | os.PathLike[str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        conf: str | None = None,
    ) -> Config:
        """Return the configuration that a program asked for with `spec`, with what was said from outside on top.

        `spec` is a Config, which is taken as it is; or a mapping of options, the path of a TOML file, the name of a
        profile (`profiles()` lists them), or None for the defaults. On top of these come, in this order, the file or
        profile that POOLALLOC_CONFIG names and the options in POOLALLOC_CONF; the file or profile `config` and the
        options `conf` come last, on top of a Config too.

        Raises:
            ConfigError: an option is unknown or has a value that is not allowed, or a file cannot be read.
        """
        sources: list[_Source] = []
        if isinstance(spec, Config):
            sources.append(("", _differing(spec)))
        elif isinstance(spec, Mapping):
            sources.append(("", _check_names(spec, "options")))
        elif isinstance(spec, (str, os.PathLike)):
            sources.append((os.fspath(spec), _from_spec(spec)))
        elif spec is not None:
            raise ConfigError(
                f"a configuration is a Config, a mapping, the path of a TOML file or a profile's name, not {spec!r}"
            )
        if not isinstance(spec, Config):
            sources += _from_environment(os.environ)
        if config is not None:
            sources.append((os.fspath(config), _from_spec(config)))
        if conf is not None:
            sources.append(("", _from_conf(conf)))
        return cls._from(*sources)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """Return the options in the table `[poolalloc]` of a TOML file.

        Raises:
            ConfigError: the file cannot be read, or an option in it is wrong.
        """
        return cls._from((os.fspath(path), _from_file(path)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Return the options of the file that POOLALLOC_CONFIG names, with those of POOLALLOC_CONF on top.

        `environ` stands for os.environ.

        Raises:
            ConfigError: an option is wrong; the text says in which of the two.
        """
        return cls._from(*_from_environment(os.environ if environ is None else environ))

    @classmethod
    def from_conf(cls, text: str) -> Config:
        """Return the options in `key:value,key:value`, the form of POOLALLOC_CONF.

        Raises:
            ConfigError: an option is unknown or has a value that is not allowed.
        """
        return cls._from(("", _from_conf(text)))

    @classmethod
    def _from(cls, *sources: _Source) -> Config:
        """Later sources come on top. What shows only when all are known is said of the last that named the option."""
        options: dict[str, Any] = {}
        for _, named in sources:
            options |= named
        try:
            return cls(**options)
        except ConfigError as error:
            found = re.match(r"option (\w+):", str(error))
            source = next((one for one, named in reversed(sources) if found and found[1] in named), "")
            if not source:
                raise
            raise ConfigError(f"{source}: {error}") from None

    def unrecorded(self) -> Config:
        """Return the same configuration without what says whether and where to record."""
        return dataclasses.replace(self, record="", record_stacks=False)

    def to_toml(self, *, every_option: bool = True) -> str:
        """Return a TOML file that `from_toml` reads back, with every option and what it does, or with what differs."""
        lines = ["[poolalloc]"]
        differing = _differing(self)
        for option in OPTIONS:
            if not every_option and option.name not in differing:
                continue
            lines.append(f"# {option.help} Allowed: {_range(option)}.")
            lines.append(f"{option.name} = {_toml_value(option, getattr(self, option.name))}")
        return "\n".join(lines) + "\n"

    def to_conf(self) -> str:
        """Return the options that differ from the defaults as `key:value,key:value`."""
        return ",".join(f"{name}:{_conf_value(_TABLE[name], value)}" for name, value in _differing(self).items())


def profiles() -> list[str]:
    """Return the names of the configurations that ship with poolalloc, for `install(name)`."""
    return sorted(entry.name[: -len(".toml")] for entry in _profiles().iterdir() if entry.name.endswith(".toml"))


def describe_profiles() -> dict[str, str]:
    """Return what each of them is for, by name."""
    found = {}
    for name in profiles():
        text = _profiles().joinpath(f"{name}.toml").read_text(encoding="utf-8")
        found[name] = str(tomllib.loads(text)["provenance"]["about"])
    return found


# --- sources: each gives the options it names, values as they were written ------------------------------------------


def _profiles() -> Any:
    return resources.files("poolalloc") / "profiles"


def _from_spec(spec: str | os.PathLike[str]) -> dict[str, object]:
    """A profile is a plain word; whatever has a folder or a dot in it is a path."""
    name = os.fspath(spec)
    if not isinstance(spec, str) or "." in name or os.path.basename(name) != name:
        return _from_file(spec)
    if name not in profiles():
        raise ConfigError(
            f"there is no profile {_quoted(name)}; nearest: {nearest(name, profiles())}; all: {', '.join(profiles())}; "
            f'a file is written with its ending, such as "{name or "profile"}.toml"'
        )
    return _from_toml(_profiles().joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"profile {name}")


def _from_file(path: str | os.PathLike[str]) -> dict[str, object]:
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{name} is no TOML file: {error}") from None
    return _from_toml(text, name)


def _from_toml(text: str, source: str) -> dict[str, object]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source} is no TOML file: {error}") from None
    for key, value in document.items():
        if key == "provenance" and isinstance(value, dict):
            continue  # where a profile comes from: for people
        if key != "poolalloc":
            kind = "table" if isinstance(value, dict) else "key"
            raise ConfigError(f"{source}: unknown {kind} {_quoted(key)}; options stand in the table [poolalloc]")
    table = document.get("poolalloc", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: poolalloc = {table!r} is no table; options stand in the table [poolalloc]")
    return _named(source, lambda: _check_values(_check_names(table, "[poolalloc]")))


_Source = tuple[str, Mapping[str, object]]
"""Where options come from, as it is called, and the options."""


def _from_environment(environ: Mapping[str, str]) -> list[_Source]:
    sources: list[_Source] = []
    if path := environ.get("POOLALLOC_CONFIG", ""):
        sources.append(("POOLALLOC_CONFIG", _named("POOLALLOC_CONFIG", lambda: _from_spec(path))))
    if text := environ.get("POOLALLOC_CONF", ""):
        sources.append(("POOLALLOC_CONF", _named("POOLALLOC_CONF", lambda: _from_conf(text))))
    return sources


def _from_conf(text: str) -> dict[str, object]:
    options: dict[str, object] = {}
    if not text.strip(_SPACE):
        return options
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1].strip(_SPACE):
        parts.pop()  # after a last comma
    for part in parts:
        entry = part.strip(_SPACE)
        name, colon, value = (piece.strip(_SPACE) for piece in entry.partition(":"))
        if not colon:
            raise ConfigError(
                f"options: {_quoted(entry)} in {_quoted(text)} has no value; write key:value,key:value, such as "
                f'"{OPTIONS[0].name}:0"'
            )
        option = _find(name, value)
        checked = _check(option, _read(option, value), value)
        if name in options:
            raise ConfigError(f"option {name}: {_quoted(value)} is a second value in {_quoted(text)}; allowed: one")
        options[name] = checked
    return options


def _named(source: str, read: Callable[[], dict[str, object]]) -> dict[str, object]:
    """What `read` returns; its errors begin with the source."""
    try:
        return read()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


# --- one value ------------------------------------------------------------------------------------------------------


def _find(name: str, value: object) -> Option:
    if name in _TABLE:
        return _TABLE[name]
    near = _TABLE[nearest(name, _TABLE)]
    raise ConfigError(
        f"unknown option {_quoted(name)} (value {_quoted(value)}); nearest known option: {near.name} "
        f"(allowed: {_range(near)}); all options: {', '.join(_TABLE)}"
    )


def _check_names(options: Mapping[Any, object], where: str) -> dict[str, object]:
    for name, value in options.items():
        if not isinstance(name, str):
            raise ConfigError(f"{where}: {name!r} is no name of an option")
        _find(name, value)
    return dict(options)


def _check_values(options: Mapping[str, object]) -> dict[str, object]:
    return {name: _check(_TABLE[name], value) for name, value in options.items()}


def _read(option: Option, text: str) -> object:
    """The value that a text stands for. Sizes and bins stay text: _check reads them."""
    if option.type in ("bytes", "choice", "text", "bins"):
        return text
    if option.type == "integer" and _INTEGER.fullmatch(text):
        try:
            return int(text)
        except ValueError:  # more digits than Python converts, so far out of every range
            return -math.inf if text.startswith("-") else math.inf
    if option.type == "number" and _NUMBER.fullmatch(text):
        return float(text)
    if option.type == "boolean" and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    raise _refusal(option, text, _problem(option, text))


_PROBLEMS = {
    "text": "has a comma in it, or is no text",
    "bytes": 'is not a size in bytes (such as 1048576 or "1 MiB")',
    "integer": "is not a whole number",
    "number": "is not a number",
    "boolean": "is not true or false",
}


def words_of(option: Option) -> list[str]:
    """Return the words that a choice allows."""
    return option.unit.split(_BETWEEN_WORDS)


def _problem(option: Option, value: object) -> str:
    if option.type != "choice":
        return _PROBLEMS[option.type]
    return f"is none of the allowed words (nearest: {nearest(str(value), words_of(option))})"


def _check(option: Option, value: object, text: str | None = None) -> int | float | bool | str | tuple[ExactBin, ...]:
    """The value in the option's own type, if it is allowed. `text` is how it was written, where that is known."""
    if option.type == "bins":
        return bins_of(value)
    converted = _convert(option, value)
    written = value if text is None else text
    if converted is None:
        raise _refusal(option, written, _problem(option, written))
    if isinstance(converted, str):
        return converted
    if not option.minimum <= converted <= option.maximum:
        raise _refusal(option, written, "is out of range")
    return converted


def _convert(option: Option, value: object) -> int | float | bool | str | None:
    if option.type == "choice":
        return value if isinstance(value, str) and value in words_of(option) else None
    if option.type == "text":
        return value if isinstance(value, str) and "," not in value else None
    if option.type == "boolean" or isinstance(value, bool):
        return value if isinstance(value, bool) and option.type == "boolean" else None
    if option.type == "number":
        return _float(value) if isinstance(value, Real) else None
    if option.type == "bytes" and isinstance(value, str):
        return _size(value)
    return _whole(value)


def _size(text: str) -> int | None:
    try:
        return parse_size(text, zero=True)
    except ValueError:
        return None


def _whole(value: object) -> int | float | None:
    if isinstance(value, float) and math.isinf(value):
        return value
    try:
        return operator.index(cast(Any, value))
    except TypeError:
        return None


def _float(value: Real) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return None if math.isnan(number) else number


def _check_together(values: Mapping[str, Any]) -> None:
    """What a range cannot say; check_options in csrc/core/options/options.cpp says the same."""
    if 0 < values["memory_limit"] < PAGE_BYTES:
        page = format_size(PAGE_BYTES)
        problem = f"is less than one page of {page}, so nothing could be allocated"
        raise _refusal(_TABLE["memory_limit"], values["memory_limit"], problem)
    if values["memory_fraction"] == 0:
        problem = "leaves poolalloc no memory, so nothing could be allocated"
        raise _refusal(_TABLE["memory_fraction"], 0, problem)
    for name, most, bound in (
        ("prealloc", "memory_limit", values["memory_limit"] or math.inf),
        ("trim_low", "trim_high", values["trim_high"]),
    ):
        if values[name] > bound:
            raise _refusal(_TABLE[name], values[name], f"is more than {most}, {format_size(int(bound))}")
    for each in values["exact_bins"]:
        if each.size <= values["bin_limit"]:
            limit = format_size(values["bin_limit"])
            raise bin_refusal(each, f"is no larger than bin_limit, {limit}, up to which all sizes have bins")


def _refusal(option: Option, value: object, problem: str) -> ConfigError:
    return ConfigError(f"option {option.name}: {_quoted(value)} {problem}; allowed: {_range(option)}")


# --- values as text -------------------------------------------------------------------------------------------------


def _quoted(value: object) -> str:
    """The value in quotes and on one line, whatever is in it."""
    return json.dumps(str(value), ensure_ascii=False)


def _range(option: Option) -> str:
    if option.type == "boolean":
        return "true or false"
    if option.type == "choice":
        return option.unit
    if option.type == "text":
        return f"{option.unit} without a comma"
    if option.type == "bins":
        return ALLOWED_BINS
    if option.type == "bytes":
        return f"{format_size(int(option.minimum))} to {format_size(int(option.maximum))}"
    return f"{option.minimum:g} to {option.maximum:g} ({option.unit})"


def _differing(config: Config) -> dict[str, object]:
    values = {option.name: getattr(config, option.name) for option in OPTIONS}
    return {name: value for name, value in values.items() if value != _TABLE[name].default}


def _conf_value(option: Option, value: Any) -> str:
    return exact_size(value) if option.type == "bytes" else _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return text_of(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _toml_value(option: Option, value: Any) -> str:
    if option.type == "bins":
        rows = (f"{{ size = {_toml_size(b.size)}, preallocate = {b.preallocate}, keep = {b.keep} }}" for b in value)
        return f"[{', '.join(rows)}]"
    if option.type == "bytes" and value:
        return _toml_size(value)
    return json.dumps(value) if isinstance(value, str) else _text(value)


def _toml_size(size: int) -> str:
    exact = size % 1024 == 0 and parse_size(format_size(size)) == size
    return f'"{format_size(size)}"' if exact else str(size)
