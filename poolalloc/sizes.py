"""Sizes in bytes as people write them: `80 GiB`, `24GB`, `2MiB`, `1048576`.

The same rules as parse_bytes and format_bytes of options.h in csrc/core, for code that must not load the native module.
"""

from __future__ import annotations

import re
from fractions import Fraction

from poolalloc.errors import UsageError

__all__ = ["format_size", "parse_size"]

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)
_LIMIT = 2**63


def parse_size(text: str, *, zero: bool = False) -> int:
    """Return the bytes that `text` stands for; a fraction of a byte is dropped.

    Raises:
        UsageError: it is not a size, or no bytes at all unless `zero` says that they are a value too.
    """
    match = _FORM.fullmatch(text)
    if match is None or match[2].lower() not in UNITS:
        reason = "is negative" if text.strip().startswith("-") else "is not a size"
        raise UsageError(
            f'"{text}" {reason}; write plain bytes or a number with a unit, such as 80GiB, 512 MiB or 24GB'
        )
    size = int(Fraction(match[1]) * UNITS[match[2].lower()])
    if size == 0 and not zero:
        raise UsageError(f'"{text}" is no size to work with; it must be at least one byte')
    if size >= _LIMIT:
        raise UsageError(f'"{text}" is too large; the largest size is below 8388608 TiB')
    return size


def format_size(size: int) -> str:
    """Return `size` bytes in the largest binary unit that it reaches: exact if whole, else with two decimals."""
    unit, scale = "B", 1
    for name, candidate in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40)):
        if abs(size) >= candidate:
            unit, scale = name, candidate
    return f"{size // scale} {unit}" if size % scale == 0 else f"{size / scale:.2f} {unit}"


def exact_size(size: int) -> str:
    """Return a short text that parse_size reads back to `size`: `128KiB`, or plain bytes where no unit is exact."""
    for name, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % scale == 0:
            return f"{size // scale}{name}"
    return str(size)
