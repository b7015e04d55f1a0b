"""Exact bins, the value of the option `exact_bins`: sizes whose blocks are kept when they are freed.

The core reads the same texts and says the same of what is wrong (csrc/core/options/options.cpp).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from poolalloc.errors import ConfigError
from poolalloc.sizes import exact_size, format_size, parse_size

GRANULARITY = 512
MOST_BINS = 64
MOST_KEPT = 65536
MOST_BYTES = 1 << 40
FORM = "SIZE/PREALLOCATE/KEEP"
ALLOWED = (
    f"{FORM} with + between, such as 6MiB/16/64+20MiB/0/8: at most {MOST_BINS} sizes up to {format_size(MOST_BYTES)}, "
    f"KEEP from 1 to {MOST_KEPT}, PREALLOCATE from 0 to KEEP"
)
_SPACE = " \t\n\r\f\v"
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, init=False)
class ExactBin:
    """A size whose blocks every stream keeps for the next requests of it, at most `keep` of them.

    The first request of the size on a device makes `preallocate` blocks. Sizes are in bytes, may be given as text such
    as `"6 MiB"`, and mean what they are when rounded up to 512 B, as requests are.

    Raises:
        ConfigError: a figure is out of range.
    """

    size: int
    preallocate: int
    keep: int

    def __init__(self, size: int | str, preallocate: int = 0, *, keep: int) -> None:
        try:
            size_bytes = parse_size(size, zero=True) if isinstance(size, str) else _whole(size)
            figures = (size_bytes, _whole(preallocate), _whole(keep))
        except (TypeError, ValueError):
            raise refusal(f"{size}/{preallocate}/{keep}", f"is not {FORM}") from None
        for field, figure in zip(fields(self), figures, strict=True):
            object.__setattr__(self, field.name, figure)
        for name, figure, low, high in (
            ("size", self.size, 1, MOST_BYTES),
            ("KEEP", self.keep, 1, MOST_KEPT),
            ("PREALLOCATE", self.preallocate, 0, self.keep),
        ):
            if not low <= figure <= high:
                raise refusal(self, f"has a {name} out of range")

    def __str__(self) -> str:
        return f"{self.size}/{self.preallocate}/{self.keep}"

    @property
    def rounded(self) -> int:
        """The bytes of its blocks."""
        return -(-self.size // GRANULARITY) * GRANULARITY


def refusal(value: object, problem: str) -> ConfigError:
    """Return the error that says what is wrong with one bin."""
    return ConfigError(f"option exact_bins: {json.dumps(str(value), ensure_ascii=False)} {problem}; allowed: {ALLOWED}")


def bins_of(value: object) -> tuple[ExactBin, ...]:
    """Return the bins that a text, or several ExactBin or mappings of their fields, stand for.

    Raises:
        ConfigError: it stands for no bins.
    """
    if isinstance(value, str):
        parts = value.split("+") if value.strip(_SPACE) else []
        bins = tuple(_from_text(part.strip(_SPACE)) for part in parts)
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)):
        bins = tuple(each if isinstance(each, ExactBin) else _from_mapping(each) for each in value)
    else:
        raise refusal(value, "is no list of exact bins")
    seen: set[int] = set()
    for each in bins:
        if each.rounded in seen:
            raise refusal(each, f"is a second bin of its size, in units of {format_size(GRANULARITY)}")
        seen.add(each.rounded)
        if len(seen) > MOST_BINS:
            raise refusal(each, "is one bin too many")
    return bins


def text_of(bins: Iterable[ExactBin]) -> str:
    """Return the text that bins_of() reads back."""
    return "+".join(f"{exact_size(each.size)}/{each.preallocate}/{each.keep}" for each in bins)


def _from_text(part: str) -> ExactBin:
    pieces = [piece.strip(_SPACE) for piece in part.split("/")]
    if len(pieces) != 3 or not all(map(_WHOLE.fullmatch, pieces[1:])):
        raise refusal(part, f"is not {FORM}")
    try:
        size = parse_size(pieces[0], zero=True)
    except ValueError:
        raise refusal(part, f"is not {FORM}") from None
    return ExactBin(size, _figure(pieces[1]), keep=_figure(pieces[2]))


def _figure(digits: str) -> int:
    """As the core reads it: what is beyond 64 bits stays at their end, out of every range."""
    try:
        value = int(digits)
    except ValueError:  # more digits than Python converts
        value = -(2**63) if digits.startswith("-") else 2**63
    return max(-(2**63), min(value, 2**63 - 1))


def _from_mapping(value: object) -> ExactBin:
    if not isinstance(value, Mapping):
        raise refusal(value, "is no exact bin, nor a table with size, preallocate and keep")
    known = [field.name for field in fields(ExactBin)]
    for name in value:
        if name not in known:
            raise refusal(name, "is no key of an exact bin, which are size, preallocate and keep")
    for name in ("size", "keep"):
        if name not in value:
            raise refusal(dict(value), f"has no {name}")
    return ExactBin(**value)


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("a boolean is no number")
    return operator.index(value)
